#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: token_info
short_description: List the tokens of a daemon
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the tokens by which the daemon knows who asks over the network, without their secrets, which it does not keep.
  - It takes an administrator.
options:
  name:
    description: Only tokens of this name. None is found if there is none.
    type: str
  role:
    description: Only tokens with this role.
    type: str
    choices: [viewer, operator, admin]
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.token
'''

EXAMPLES = r'''
- name: Look for tokens that nobody uses
  gpuvirt.gpuvirt.token_info:
  register: found

- name: Name them
  ansible.builtin.debug:
    msg: '{{ found.tokens | rejectattr("last_used", "defined") | map(attribute="name") }}'
'''

RETURN = r'''
tokens:
  description: The tokens.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 01KAR2Z7T4Y2M8Q6V0R9X3B000
      name: monitoring
      role: viewer
      created: '2026-11-26T06:00:00Z'
      expires: '2027-02-24T06:00:00Z'
      last_used: '2026-11-26T07:00:00Z'
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    r.result['tokens'] = r.client.list('tokens', **r.given('name', 'role'))


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str'),
            role=dict(type='str', choices=['viewer', 'operator', 'admin']),
        ),
    )


if __name__ == '__main__':
    main()
