#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: sriov_info
short_description: Show the virtual functions of GPUs
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Shows, of each GPU with SR-IOV, how many virtual functions were asked for, which there are, and who uses them.
options:
  gpu:
    description: Only the GPU with this id. None is found if it has no SR-IOV.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.sriov
'''

EXAMPLES = r'''
- name: Look at the virtual functions
  gpuvirt.gpuvirt.sriov_info:
  register: found

- name: Turn all of them on
  gpuvirt.gpuvirt.sriov:
    gpu: '{{ item.gpu }}'
    num_vfs: '{{ item.total_vfs }}'
  loop: '{{ found.sriov }}'
'''

RETURN = r'''
sriov:
  description: The virtual functions, for each GPU.
  returned: success
  type: list
  elements: dict
  sample:
    - gpu: '0000:41:00.0'
      total_vfs: 31
      num_vfs: 1
      wanted: 1
      functions:
        - {index: 0, pci_address: '0000:41:00.1', holders: []}
      equal: true
unreadable:
  description: The GPUs that cannot be read now, and why. Whether they belong in the list is not known.
  returned: success
  type: list
  elements: dict
  sample: []
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    r.result['sriov'], r.result['unreadable'] = r.each_gpu('sriov', r.params['gpu'])


def main():
    run(body, argument_spec=options(
        gpu=dict(type='str'),
    ))


if __name__ == '__main__':
    main()
