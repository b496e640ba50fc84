#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: profile_info
short_description: List what a GPU can make
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the profiles of a GPU, and how many more of each fit now.
options:
  gpu:
    description: The GPU's id. That is its full PCI address, or its name where it is no PCI device.
    type: str
    required: true
  kind:
    description: Only profiles of this kind.
    type: str
    choices: [mig, mdev, vgpu, vf, card]
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.capacity_info
'''

EXAMPLES = r'''
- name: Look at what a card offers
  gpuvirt.gpuvirt.profile_info:
    gpu: '0000:41:00.0'
  register: found
'''

RETURN = r'''
profiles:
  description: The profiles.
  returned: success
  type: list
  elements: dict
  sample:
    - name: L40S-8Q
      kind: vgpu
      gpu: '0000:41:00.0'
      memory_bytes: 8589934592
      max_instances: 6
      available: 5
      native_id: '1156'
      attributes: {num_heads: '4', max_resolution: 7680x4320}
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    r.result['profiles'] = r.client.list('gpus', r.params['gpu'], 'profiles', **r.given('kind'))


def main():
    run(body, argument_spec=options(
        gpu=dict(type='str', required=True),
        kind=dict(type='str', choices=['mig', 'mdev', 'vgpu', 'vf', 'card']),
    ))


if __name__ == '__main__':
    main()
