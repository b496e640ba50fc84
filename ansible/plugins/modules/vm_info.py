#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: vm_info
short_description: List VMs
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the VMs of libvirt, with the devices of the host that each has, live and at its next start.
options:
  vm:
    description: Only the VM with this UUID or name. None is found if there is none.
    type: str
  state:
    description: Only VMs in this state.
    type: str
    choices: [running, paused, shutoff, crashed]
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.assignment
'''

EXAMPLES = r'''
- name: Look at the devices of a VM
  gpuvirt.gpuvirt.vm_info:
    vm: web1
  register: found
'''

RETURN = r'''
vms:
  description: The VMs.
  returned: success
  type: list
  elements: dict
  sample:
    - uuid: 3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01
      name: web1
      state: running
      autostart: true
      persistent: true
      hostdevs: []
      assignments: [web1-gpu]
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    if r.params['vm'] is not None:
        one = r.client.find('vms', r.params['vm'])
        r.result['vms'] = [] if one is None else [one]
        return
    r.result['vms'] = r.client.list('vms', **r.given('state'))


def main():
    run(
        body,
        argument_spec=options(
            vm=dict(type='str'),
            state=dict(type='str', choices=['running', 'paused', 'shutoff', 'crashed']),
        ),
        mutually_exclusive=[('vm', 'state')],
    )


if __name__ == '__main__':
    main()
