#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: assignment_info
short_description: List assignments
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the lasting wishes that VMs have partitions, with what is observed of each.
options:
  name:
    description: Only the assignment of this name. None is found if there is none.
    type: str
  vm:
    description: Only assignments to the VM with this UUID or name.
    type: str
  profile:
    description: Only assignments of this profile.
    type: str
  gpu:
    description: Only assignments on this GPU, picked or asked for.
    type: str
  state:
    description: Only assignments in this state.
    type: str
    choices: [attaching, attached, detaching, unknown, drifted]
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.assignment
'''

EXAMPLES = r'''
- name: Look for VMs that get their GPU at their next start
  gpuvirt.gpuvirt.assignment_info:
  register: found

- name: Name them
  ansible.builtin.debug:
    msg: '{{ found.assignments | selectattr("restart_required") | map(attribute="vm_name") | unique }}'
'''

RETURN = r'''
assignments:
  description: The assignments.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web1-gpu
      vm: 3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01
      vm_name: web1
      profile: T4-4Q
      partition_gpu: '0000:08:00.0'
      state: attached
      attached: {live: true, config: true}
      restart_required: false
      conditions: []
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    if r.params['name'] is not None:
        one = r.client.find('assignments', r.params['name'])
        r.result['assignments'] = [] if one is None else [one]
        return
    r.result['assignments'] = r.client.list('assignments', **r.given('vm', 'profile', 'gpu', 'state'))


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str'),
            vm=dict(type='str'),
            profile=dict(type='str'),
            gpu=dict(type='str'),
            state=dict(type='str', choices=['attaching', 'attached', 'detaching', 'unknown', 'drifted']),
        ),
        mutually_exclusive=[('name', 'vm'), ('name', 'profile'), ('name', 'gpu'), ('name', 'state')],
    )


if __name__ == '__main__':
    main()
