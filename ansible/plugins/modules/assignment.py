#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: assignment
short_description: Give a VM a partition of a GPU
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - An assignment is the lasting wish that a VM has a partition of a profile, under a name of your choice. The partition is made for
    it, attached to the VM, and put back after a reboot.
  - The same wish again changes nothing. Another wish under a name that is taken fails, with what differs in C(differences). It is
    never deleted and made anew behind your back. Say I(state=absent) first, where the VM may lose the device, or take another name.
  - Options that are left out have their defaults, and are not taken from what is stored.
options:
  name:
    description: The name of the assignment. It has 1 to 63 of a-z, 0-9, C(.), C(_) and C(-), with a letter or digit at both ends.
    type: str
    required: true
  state:
    description:
      - C(present) has the VM given the partition. C(absent) has it taken from the VM and removed.
    type: str
    choices: [present, absent]
    default: present
  vm:
    description: The UUID or name of the VM. Needed for I(state=present).
    type: str
  profile:
    description: The profile, by its exact name. Needed for I(state=present).
    type: str
  gpu:
    description: The id of the GPU. If absent, any managed GPU that fits.
    type: str
  placement:
    description: Where several GPUs fit, C(pack) takes the fullest, and C(spread) the emptiest. If absent, the daemon's setting C(placement) decides.
    type: str
    choices: [pack, spread]
  hotplug:
    description:
      - C(auto) attaches at once if the VM runs, and at its next start. C(require) fails unless it runs. C(never) attaches at its
        next start only, and then C(restart_required) is true for a VM that runs.
    type: str
    choices: [auto, require, never]
    default: auto
  display:
    description: Whether the device is the VM's screen.
    type: bool
    default: false
  ramfb:
    description: Whether the screen shows the firmware and the boot as well. A VM that runs gets and loses such a device when it is shut down and started.
    type: bool
    default: false
  vgpu_params:
    description: Parameters of a vGPU of NVIDIA, C(key=value) with a comma between two. The order does not matter.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.assignment_info
  - module: gpuvirt.gpuvirt.capacity_info
'''

EXAMPLES = r'''
- name: Give web1 a quarter of a T4
  gpuvirt.gpuvirt.assignment:
    name: web1-gpu
    vm: web1
    profile: T4-4Q
  register: gpu

- name: Say what is left to do
  ansible.builtin.debug:
    msg: web1 has its GPU after a restart
  when: gpu.restart_required

- name: Take it back
  gpuvirt.gpuvirt.assignment:
    name: web1-gpu
    state: absent
'''

RETURN = r'''
assignment:
  description:
    - The assignment as it is now, or for I(state=absent) as it was.
    - In check mode, of one that is new, what is known of it beforehand.
  returned: when there is or was one, or would be
  type: dict
  sample:
    name: web1-gpu
    vm: 3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01
    vm_name: web1
    profile: T4-4Q
    placement: pack
    hotplug: auto
    display: false
    ramfb: false
    partition: 0d4a0f0e-6f0c-4a55-8d6e-3f1c9a5e7b21
    partition_gpu: '0000:08:00.0'
    state: attached
    attached: {live: true, config: true}
    restart_required: false
restart_required:
  description: The VM runs, and gets the device at its next start. Where it is taken back, false.
  returned: success
  type: bool
operation:
  description: The id of the operation that carried it out.
  returned: when there was one
  type: str
plan:
  description: What is done, or in check mode would be.
  returned: when something is to change
  type: dict
  sample:
    summary: attach T4-4Q to vm web1 as web1-gpu
    steps:
      - {kind: partition.make, summary: 'make T4-4Q on 0000:08:00.0'}
      - {kind: vm.attach, summary: attach it to vm web1}
    changes: true
differences:
  description: The fields in which another wish is stored under the name.
  returned: failure
  type: dict
  sample:
    profile: {stored: T4-4Q, asked: T4-8Q}
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run

WISH = ('vm', 'profile', 'gpu', 'placement', 'hotplug', 'display', 'ramfb', 'vgpu_params')


def sorted_params(text):
    return ','.join(sorted(p.strip() for p in text.split(','))) if text else ''


def is_fulfilled(a, wish):
    """Whether an assignment surely is what is wished for. In doubt it is not, and the daemon compares."""
    if a['state'] != 'attached' or any(c['status'] for c in a['conditions']):
        return False
    if wish['vm'] != a['vm_name'] and wish['vm'].lower() != a['vm']:
        return False
    if sorted_params(wish.get('vgpu_params')) != sorted_params(a.get('vgpu_params')):
        return False
    if wish.get('placement', a['placement']) != a['placement']:
        return False
    return all(wish.get(f) == a.get(f) for f in ('profile', 'gpu', 'hotplug', 'display', 'ramfb'))


def view(a):
    """What --diff shows of an assignment."""
    if a is None:
        return {}
    shown = dict((f, a[f]) for f in WISH + ('state',) if f in a)
    shown['vm'] = a['vm_name']
    if 'vgpu_params' in shown:
        shown['vgpu_params'] = sorted_params(shown['vgpu_params'])
    return shown


def expected(r, name, wish, before):
    """What a check knows of an assignment that would be made, or put back."""
    vm = r.client.get('vms', wish['vm'])
    runs = vm['state'] in ('running', 'paused')
    placement = next(s['values'][0] for s in r.client.get('config')['items'] if s['key'] == 'placement')
    return dict(before or dict(placement=placement), **dict(
        wish, name=name, vm=vm['uuid'], vm_name=vm['name'], state='attached',
        restart_required=runs and wish['hotplug'] == 'never'))


def settled(r, name):
    """The assignment, once an operation that is at it has ended, or None."""
    a = r.client.find('assignments', name)
    if a is None or not a.get('operation') or not r.params['wait'] or a['state'] != 'attaching':
        return a
    op = r.client.wait(a['operation'])
    if op['status'] in ('waiting', 'failed'):
        raise Problem.of_operation(op)
    return r.client.find('assignments', name)


def present(r, name):
    wish = r.given(*WISH)
    before = after = settled(r, name)
    if before is None or not is_fulfilled(before, wish):
        if r.carry_out(Request('PUT', 'assignments', name, body=wish)):
            r.result['changed'] = True
            after = expected(r, name, wish, before) if r.check else r.client.find('assignments', name)
        elif r.params['wait']:
            after = settled(r, name)
        if after is None:
            raise Problem('not-found', 'assignment "{0}" was there and is not any more: somebody else has deleted it'.format(name))
    r.result['assignment'] = after
    r.result['restart_required'] = after['restart_required']
    r.differ('assignment ' + name, view(before), view(after))


def absent(r, name):
    before = after = r.client.find('assignments', name)
    if before is None:
        r.differ('assignment ' + name, {}, {})
        return
    try:
        if r.carry_out(Request('DELETE', 'assignments', name)):
            r.result['changed'] = True
            after = None if r.check or r.params['wait'] else r.client.find('assignments', name)
    except Problem as p:
        # Somebody else has taken it back meanwhile, and was waited for.
        if not p.is_gone():
            raise
        before = after = None
    if before is not None:
        r.result['assignment'] = before
    r.differ('assignment ' + name, view(before), view(after))


def body(r):
    if r.params['state'] == 'present':
        present(r, r.params['name'])
    else:
        absent(r, r.params['name'])


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str', required=True),
            state=dict(type='str', choices=['present', 'absent'], default='present'),
            vm=dict(type='str'),
            profile=dict(type='str'),
            gpu=dict(type='str'),
            placement=dict(type='str', choices=['pack', 'spread']),
            hotplug=dict(type='str', choices=['auto', 'require', 'never'], default='auto'),
            display=dict(type='bool', default=False),
            ramfb=dict(type='bool', default=False),
            vgpu_params=dict(type='str'),
        ),
        required_if=[('state', 'present', ['vm', 'profile'])],
    )


if __name__ == '__main__':
    main()
