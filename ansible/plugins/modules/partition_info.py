#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: partition_info
short_description: List partitions
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the pieces of GPUs that were made, also by others, with who uses each.
options:
  id:
    description: Only the partition with this id. None is found if there is none.
    type: str
  gpu:
    description: Only partitions of this GPU.
    type: str
  profile:
    description: Only partitions of this profile.
    type: str
  kind:
    description: Only partitions of this kind.
    type: str
    choices: [mig, mdev, vgpu, vf, card]
  origin:
    description: C(managed) are those that gpuvirt made or adopted, C(foreign) those of others.
    type: str
    choices: [managed, foreign]
  state:
    description: Only partitions in this state.
    type: str
    choices: [making, made, removing, missing]
  assignment:
    description: Only the partition of this assignment.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.partition
'''

EXAMPLES = r'''
- name: Look at what is on a GPU
  gpuvirt.gpuvirt.partition_info:
    gpu: '0000:41:00.0'
  register: found
'''

RETURN = r'''
partitions:
  description: The partitions.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 0000:41:00.0/vgpu/0
      gpu: '0000:41:00.0'
      kind: vgpu
      profile: L40S-8Q
      handle: {pci_address: '0000:41:00.4'}
      origin: managed
      state: made
      assignment: web1-gpu
      holders: [{kind: vm, id: 0b6f9d3a-6f0c-4a55-8d6e-3f1c9a5e7b21, name: web1}]
      conditions: []
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    if r.params['id'] is not None:
        one = r.client.find('partitions', r.params['id'])
        r.result['partitions'] = [] if one is None else [one]
        return
    r.result['partitions'] = r.client.list('partitions', **r.given('gpu', 'profile', 'kind', 'origin', 'state', 'assignment'))


def main():
    run(
        body,
        argument_spec=options(
            id=dict(type='str'),
            gpu=dict(type='str'),
            profile=dict(type='str'),
            kind=dict(type='str', choices=['mig', 'mdev', 'vgpu', 'vf', 'card']),
            origin=dict(type='str', choices=['managed', 'foreign']),
            state=dict(type='str', choices=['making', 'made', 'removing', 'missing']),
            assignment=dict(type='str'),
        ),
        mutually_exclusive=[('id', 'gpu'), ('id', 'profile'), ('id', 'kind'), ('id', 'origin'), ('id', 'state'), ('id', 'assignment')],
    )


if __name__ == '__main__':
    main()
