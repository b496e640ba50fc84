#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: mig_info
short_description: Show how GPUs are cut by MIG
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Shows the layout of each GPU that MIG can cut, as it was asked for and as it is.
options:
  gpu:
    description: Only the GPU with this id. None is found if MIG cannot cut it.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.mig
'''

EXAMPLES = r'''
- name: Look for cards that are cut otherwise than was asked
  gpuvirt.gpuvirt.mig_info:
  register: found
  failed_when: found is failed or found.mig | rejectattr("equal")
'''

RETURN = r'''
mig:
  description: The layouts, one for each GPU.
  returned: success
  type: list
  elements: dict
  sample:
    - gpu: '0000:41:00.0'
      mode: {capable: true, current: true, pending: true}
      wanted: {enabled: true, instances: [{profile: 3g.20gb, placement: 4, compute: [3g.20gb]}]}
      actual: {enabled: true, instances: [{profile: 3g.20gb, placement: 4, compute: [3g.20gb]}]}
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
    r.result['mig'], r.result['unreadable'] = r.each_gpu('mig', r.params['gpu'])


def main():
    run(body, argument_spec=options(
        gpu=dict(type='str'),
    ))


if __name__ == '__main__':
    main()
