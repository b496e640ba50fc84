#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: token
short_description: Make and take back tokens of a daemon
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - A token tells a daemon who asks over the network, and how much that one may do.
  - Its secret is told once, when it is made, in C(secret). Keep it where it belongs, and give the task I(no_log=true).
  - A token of the name that has the role already is left alone, and its secret is not known any more. One with another role fails, with what
    differs in C(differences). It is never deleted and made anew behind your back.
  - It takes an administrator.
options:
  name:
    description: The name of the token. It has 1 to 63 of a-z, 0-9, C(.), C(_) and C(-), with a letter or digit at both ends.
    type: str
    required: true
  state:
    description: C(present) has one made if there is none of the name. C(absent) has all of the name taken back at once.
    type: str
    choices: [present, absent]
    default: present
  role:
    description: How much it may do. Needed for I(state=present).
    type: str
    choices: [viewer, operator, admin]
  expires:
    description:
      - Until when a token that is made is good, in the form of RFC 3339, as C(2027-01-31T00:00:00Z). If absent, the daemon says.
      - A token that is there is not compared with it.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.token_info
'''

EXAMPLES = r'''
- name: Let the monitoring look
  gpuvirt.gpuvirt.token:
    name: monitoring
    role: viewer
  no_log: true
  register: monitoring

- name: Keep the secret, which is told only once
  ansible.builtin.copy:
    content: '{{ monitoring.secret }}'
    dest: /etc/monitoring/gpuvirt.token
    mode: '0600'
  no_log: true
  when: monitoring.secret is defined

- name: Take it back
  gpuvirt.gpuvirt.token:
    name: monitoring
    state: absent
'''

RETURN = r'''
token:
  description:
    - The token as it is now, or for I(state=absent) as it was, without its secret.
    - In check mode, of one that would be made, what is known of it beforehand.
  returned: when there is or was one, or would be
  type: dict
  sample:
    id: 01KAR2Z7T4Y2M8Q6V0R9X3B000
    name: monitoring
    role: viewer
    created: '2026-11-26T06:00:00Z'
    expires: '2027-02-24T06:00:00Z'
restart_required:
  description: Whether a VM that runs has it only from its next start on. Nothing that this module changes takes that, so it is false.
  returned: success
  type: bool
secret:
  description: What to give as I(token), or in the header C(Authorization).
  returned: when it was made
  type: str
plan:
  description: What is done, or in check mode would be.
  returned: when something is to change
  type: dict
  sample:
    summary: make token monitoring with the role viewer
    steps: []
    changes: true
differences:
  description: The fields in which another token is there under the name.
  returned: failure
  type: dict
  sample:
    role: {stored: viewer, asked: admin}
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run

SHOWN = ('name', 'role', 'expires')


def view(token):
    """What --diff shows of a token."""
    return {} if token is None else dict((f, token[f]) for f in SHOWN if token.get(f) is not None)


def present(r, name, there):
    if there:
        other = [t for t in there if t['role'] == r.params['role']]
        if not other:
            raise Problem(
                'conflict', 'token "{0}" has another role'.format(name), status=409,
                differences=dict(role=dict(stored=there[0]['role'], asked=r.params['role'])),
                hint='take it back first, with state absent, or take another name')
        r.result['token'] = other[0]
        r.differ('token ' + name, view(other[0]), view(other[0]))
        return
    wish = r.given('name', 'role', 'expires')
    request = Request('POST', 'tokens', body=wish)
    r.result['plan'] = r.plan(request)
    r.result['changed'] = True
    token = wish
    if not r.check:
        made = r.client.write(request)[0]
        token, r.result['secret'] = made['token'], made['secret']
    r.result['token'] = token
    # When it ends is for the daemon to say where nobody else does: a check does not know.
    r.differ('token ' + name, {}, view(dict((f, token.get(f)) for f in wish)))


def absent(r, name, there):
    for t in there:
        r.carry_out(Request('DELETE', 'tokens', t['id']), more=True)
        r.result['changed'] = True
        r.result['token'] = t
    r.differ('token ' + name, view(there[0] if there else None), {})


def body(r):
    name = r.params['name']
    there = [t for t in r.client.list('tokens') if t['name'] == name]
    if r.params['state'] == 'present':
        present(r, name, there)
    else:
        absent(r, name, there)


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str', required=True),
            state=dict(type='str', choices=['present', 'absent'], default='present'),
            role=dict(type='str', choices=['viewer', 'operator', 'admin']),
            expires=dict(type='str'),
        ),
        required_if=[('state', 'present', ['role'])],
    )


if __name__ == '__main__':
    main()
