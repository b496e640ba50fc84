#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: gpu_info
short_description: List GPUs
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the GPUs of a host, with what is decided about each and what is observed of it.
options:
  gpu:
    description: Only the GPU with this id. None is found if there is none.
    type: str
  vendor:
    description: Only GPUs of this vendor.
    type: str
  model:
    description: Only GPUs of this model.
    type: str
  managed:
    description: Only GPUs that are managed, or are not.
    type: bool
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.gpu
'''

EXAMPLES = r'''
- name: Look at the GPUs that gpuvirt may change
  gpuvirt.gpuvirt.gpu_info:
    managed: true
  register: found

- name: Name those that something is wrong with
  ansible.builtin.debug:
    msg: '{{ item.id }}: {{ item.conditions | map(attribute="message") | join("; ") }}'
  loop: '{{ found.gpus | selectattr("conditions") }}'
'''

RETURN = r'''
gpus:
  description: The GPUs.
  returned: success
  type: list
  elements: dict
  sample:
    - id: '0000:41:00.0'
      vendor: NVIDIA
      model: L40S
      pci_address: '0000:41:00.0'
      driver: {name: nvidia, version: 580.95.02}
      memory_bytes: 48305799168
      managed: true
      quarantined: false
      policy: report
      placement: host
      kinds: [vgpu, card]
      labels: {rack: b7}
      conditions: []
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    if r.params['gpu'] is not None:
        one = r.client.find('gpus', r.params['gpu'])
        r.result['gpus'] = [] if one is None else [one]
        return
    r.result['gpus'] = r.client.list('gpus', **r.given('vendor', 'model', 'managed'))


def main():
    run(
        body,
        argument_spec=options(
            gpu=dict(type='str'),
            vendor=dict(type='str'),
            model=dict(type='str'),
            managed=dict(type='bool'),
        ),
        mutually_exclusive=[('gpu', 'vendor'), ('gpu', 'model'), ('gpu', 'managed')],
    )


if __name__ == '__main__':
    main()
