#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: sriov
short_description: Turn the virtual functions of a GPU on or off
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Gives a GPU a number of virtual functions. The number is kept, and put back after a reboot.
  - To go from one number to another all virtual functions go first, so this is refused while anything is on the GPU.
options:
  gpu:
    description: The GPU's id. That is its full PCI address.
    type: str
    required: true
  num_vfs:
    description:
      - How many virtual functions there are to be. C(0) turns them off.
      - NVIDIA's cards know only none and all. How many all are is C(total_vfs) of M(gpuvirt.gpuvirt.sriov_info).
    type: int
    required: true
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.sriov_info
'''

EXAMPLES = r'''
- name: Turn four virtual functions on
  gpuvirt.gpuvirt.sriov:
    gpu: '0000:41:00.0'
    num_vfs: 4
'''

RETURN = r'''
sriov:
  description: The virtual functions as they are now. In check mode C(num_vfs) and C(wanted) are as they would be.
  returned: success
  type: dict
  sample:
    gpu: '0000:41:00.0'
    total_vfs: 31
    num_vfs: 1
    wanted: 1
    functions:
      - {index: 0, pci_address: '0000:41:00.1', driver: vfio-pci, partition: 0000:41:00.0/vf/0, holders: []}
    equal: true
restart_required:
  description: Whether a VM that runs has it only from its next start on. Nothing that this module changes takes that, so it is false.
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
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def view(vfs):
    return dict(num_vfs=vfs['num_vfs'], wanted=vfs.get('wanted'))


def body(r):
    name, n = r.params['gpu'], r.params['num_vfs']
    before = r.client.get('gpus', name, 'sriov')
    after = before
    if (before['num_vfs'], before.get('wanted')) != (n, n) and r.carry_out(Request('PUT', 'gpus', name, 'sriov', body=dict(num_vfs=n))):
        r.result['changed'] = True
        after = dict(before, num_vfs=n, wanted=n) if r.check else r.client.get('gpus', name, 'sriov')
    r.result['sriov'] = after
    r.differ('virtual functions of ' + name, view(before), view(after))


def main():
    run(body, argument_spec=options(
        gpu=dict(type='str', required=True),
        num_vfs=dict(type='int', required=True),
    ))


if __name__ == '__main__':
    main()
