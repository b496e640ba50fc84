#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: partition
short_description: Make and remove partitions that are not for a VM
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Partitions take no name of your choice, so the module counts. I(state=present) sees to it that there are I(count) partitions of a
    profile that gpuvirt made and that belong to no assignment, and makes those that lack. More than that is as good, and none is
    removed.
  - I(state=absent) with I(id) removes that one. With I(profile) it removes all partitions of the profile that gpuvirt made and that
    belong to no assignment. If one of them may not be removed, none is.
  - A partition that gpuvirt made and that is missing now counts, with a warning. It comes back with a restore, and one more would be
    too many then.
  - For a partition that a VM is to have, use M(gpuvirt.gpuvirt.assignment). For the whole layout of a card that MIG cuts, use
    M(gpuvirt.gpuvirt.mig).
options:
  state:
    description: Whether the partitions are there.
    type: str
    choices: [present, absent]
    default: present
  profile:
    description: The profile, by its exact name. Needed for I(state=present).
    type: str
  gpu:
    description:
      - The id of the GPU. If absent, the partitions of all GPUs count, they are made on any managed GPU that fits, and I(state=absent)
        removes them from all.
    type: str
  count:
    description: How many there are to be at least. If absent, one. Only for I(state=present).
    type: int
  placement:
    description:
      - Where several GPUs fit, C(pack) takes the fullest, and C(spread) the emptiest. If absent, the daemon's setting C(placement) decides.
      - Only for those that are made.
    type: str
    choices: [pack, spread]
  vgpu_params:
    description:
      - Parameters of a vGPU of NVIDIA, C(key=value) with a comma between two. The order does not matter.
      - If given, only partitions with just these count.
    type: str
  id:
    description: The id of the partition to remove. Only for I(state=absent).
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.partition_info
'''

EXAMPLES = r'''
- name: Have two small partitions ready on a GPU
  gpuvirt.gpuvirt.partition:
    gpu: '0000:08:00.0'
    profile: T4-4Q
    count: 2

- name: Remove all of them that no assignment has
  gpuvirt.gpuvirt.partition:
    gpu: '0000:08:00.0'
    profile: T4-4Q
    state: absent

- name: Remove one
  gpuvirt.gpuvirt.partition:
    id: 0000:41:00.0/mig/0
    state: absent
'''

RETURN = r'''
partitions:
  description: The partitions that count, as they are now. In check mode, as they are before.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 0d4a0f0e-6f0c-4a55-8d6e-3f1c9a5e7b21
      gpu: '0000:08:00.0'
      kind: mdev
      profile: T4-4Q
      origin: managed
      state: made
      holders: []
restart_required:
  description: Whether a VM that runs has it only from its next start on. Nothing that this module changes takes that, so it is false.
  returned: success
  type: bool
operations:
  description: The ids of the operations that carried it out.
  returned: success
  type: list
  elements: str
plans:
  description: What is done, or in check mode would be, one plan for each partition. In check mode they do not know of each other.
  returned: success
  type: list
  elements: dict
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run

# Those on their way out do not count.
STATES = ('making', 'made', 'missing')


def parameters(text):
    return sorted(p.strip() for p in text.split(',')) if text else []


def counted(r):
    """The partitions that the options are about."""
    if r.params['id'] is not None:
        p = r.client.find('partitions', r.params['id'])
        return [] if p is None else [p]
    found = r.client.list('partitions', origin='managed', **r.given('profile', 'gpu'))
    found = [p for p in found if not p.get('assignment') and p['state'] in STATES]
    if r.params['vgpu_params'] is not None:
        want = parameters(r.params['vgpu_params'])
        found = [p for p in found if parameters(p.get('vgpu_params')) == want]
    return found


def one(r, request, more):
    """Carry one request out, and keep its plan and operation."""
    if not r.carry_out(request, more):
        return
    r.result['changed'] = True
    r.result['plans'].append(r.result.pop('plan'))
    if 'operation' in r.result:
        r.result['operations'].append(r.result.pop('operation'))


def check_room(r, lack):
    """Refuse before the first is made where not all of them fit."""
    profile, gpu = r.params['profile'], r.params['gpu']
    gpus = [g for p in r.client.get('capacity', profile=profile)['profiles'] for g in p['gpus'] if gpu in (None, g['gpu'])]
    room = sum(g['available'] for g in gpus)
    if room < lack:
        raise Problem(
            'no-capacity', 'cannot make {0} partitions {1}{2}: {3} fit'.format(lack, profile, ' on ' + gpu if gpu else '', room),
            status=507, blockers=[dict(kind='gpu', id=g['gpu'], note=', '.join(g['reasons'])) for g in gpus if g['reasons']])


def present(r, before):
    lack = (r.params['count'] or 1) - len(before)
    if lack <= 0:
        return
    body = r.given('profile', 'gpu', 'placement', 'vgpu_params')
    # The first plan refuses what cannot be at all, and says why. It says nothing of a second.
    if lack > 1:
        r.plan(Request('POST', 'partitions', body=body))
        check_room(r, lack)
    for i in range(lack):
        one(r, Request('POST', 'partitions', body=body), i + 1 < lack)


def absent(r, before):
    requests = [Request('DELETE', 'partitions', p['id']) for p in before]
    if len(requests) > 1:
        for q in requests:
            r.plan(q)
    for i, q in enumerate(requests):
        try:
            one(r, q, i + 1 < len(requests))
        except Problem as p:
            if not p.is_gone():
                raise


def body(r):
    if r.params['count'] is not None and r.params['count'] < 1:
        r.ansible.fail_json(msg='count must be 1 at least, not {0}: to have none, say state: absent'.format(r.params['count']))
    if r.params['state'] == 'present' and r.params['id'] is not None:
        r.ansible.fail_json(msg='a partition takes no id of your choice: say profile and count')
    if r.params['state'] == 'absent' and r.params['count'] is not None:
        r.ansible.fail_json(msg='count is for state: present: absent removes one by id, or all of a profile')
    r.result.update(plans=[], operations=[])
    before = counted(r)
    for p in before:
        if p['state'] == 'missing':
            r.ansible.warn('partition {0} ({1} on {2}) was made and is missing'.format(p['id'], p['profile'], p['gpu']))
    try:
        if r.params['state'] == 'present':
            present(r, before)
        else:
            absent(r, before)
    finally:
        r.result.pop('plan', None)
    after = before
    if r.result['changed'] and not r.check:
        after = counted(r)
    r.result['partitions'] = after
    difference(r, before, after)


def difference(r, before, after):
    """Show ids of what is there, and of what a check would make that it is new."""
    def view(p):
        return '{0} {1} on {2}'.format(p['id'], p['profile'], p['gpu'])

    b, a = [view(p) for p in before], [view(p) for p in after]
    if r.check and r.result['changed']:
        a = b + [p['summary'] for p in r.result['plans']] if r.params['state'] == 'present' else []
    r.differ('partitions', '\n'.join(b + ['']), '\n'.join(a + ['']))


def main():
    run(
        body,
        argument_spec=options(
            state=dict(type='str', choices=['present', 'absent'], default='present'),
            profile=dict(type='str'),
            gpu=dict(type='str'),
            count=dict(type='int'),
            placement=dict(type='str', choices=['pack', 'spread']),
            vgpu_params=dict(type='str'),
            id=dict(type='str'),
        ),
        required_if=[('state', 'present', ['profile']), ('state', 'absent', ['id', 'profile'], True)],
        mutually_exclusive=[('id', 'profile'), ('id', 'gpu'), ('id', 'vgpu_params')],
    )


if __name__ == '__main__':
    main()
