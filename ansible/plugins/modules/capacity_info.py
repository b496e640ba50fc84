#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: capacity_info
short_description: Tell how many more partitions fit
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Tells what fits now, in all and on each GPU, and why not more. Nothing is reserved.
options:
  profile:
    description: Only this profile. The module fails where no GPU of the host has it.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.profile_info
'''

EXAMPLES = r'''
- name: Ask whether two more fit
  gpuvirt.gpuvirt.capacity_info:
    profile: L40S-8Q
  register: capacity
  failed_when: capacity is failed or capacity.profiles | sum(attribute="available") < 2
'''

RETURN = r'''
profiles:
  description: What fits of each profile.
  returned: success
  type: list
  elements: dict
  sample:
    - profile: L40S-8Q
      kind: vgpu
      available: 5
      gpus:
        - {gpu: '0000:41:00.0', available: 5, reasons: []}
        - {gpu: '0000:c1:00.0', available: 0, reasons: [it is not under management]}
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    r.result['profiles'] = r.client.get('capacity', **r.given('profile'))['profiles']


def main():
    run(body, argument_spec=options(
        profile=dict(type='str'),
    ))


if __name__ == '__main__':
    main()
