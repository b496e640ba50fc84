#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: assessment_info
short_description: List assessments of physical servers
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the looks at physical servers, with what follows from what was seen.
options:
  name:
    description: Only the assessment of this name. None is found if there is none.
    type: str
  state:
    description: Only assessments in this state.
    type: str
    choices: [inspecting, watching, done]
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.assessment
'''

EXAMPLES = r'''
- name: Look for servers that are known well enough
  gpuvirt.gpuvirt.assessment_info:
    state: done
  register: found

- name: Say what is in the way of each
  ansible.builtin.debug:
    msg: '{{ item.hostname }}: {{ item.findings.concerns | selectattr("severity", "equalto", "blocker") | map(attribute="title") | join("; ") }}'
  loop: '{{ found.assessments }}'
  loop_control: {label: '{{ item.name }}'}
'''

RETURN = r'''
assessments:
  description: The assessments.
  returned: success
  type: list
  elements: dict
  sample:
    - name: gpu7
      state: watching
      source: {address: gpu7.bank.example, port: 22, user: root, host_key: 'SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8', credential: gpu7}
      window_seconds: 86400
      interval_seconds: 5
      watched_seconds: 3605
      samples: 721
      operation: 01KAR2Z7T4Y2M8Q6V0R9X3B0AC
      created_by: root
      created: '2026-11-23T11:00:00Z'
      heard: '2026-11-23T12:00:05Z'
      hostname: gpu7
      findings: {hostname: gpu7, workloads: [], concerns: [], needs: [], policy: {}}
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def body(r):
    if r.params['name'] is not None:
        one = r.client.find('assessments', r.params['name'])
        r.result['assessments'] = [] if one is None else [one]
        return
    r.result['assessments'] = r.client.list('assessments', **r.given('state'))


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str'),
            state=dict(type='str', choices=['inspecting', 'watching', 'done']),
        ),
        mutually_exclusive=[('name', 'state')],
    )


if __name__ == '__main__':
    main()
