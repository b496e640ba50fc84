#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: migration_info
short_description: List migrations of physical servers
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Lists the moves of physical servers into VMs, with how far each is, and what was rehearsed and cut over.
options:
  name:
    description: Only the migration of this name. None is found if there is none.
    type: str
  phase:
    description: Only migrations in this phase.
    type: str
    choices: [planned, reserved, syncing, ready, rehearsing, cutting-over, verifying, done, waiting, rolling-back, rolled-back, failed]
  assessment:
    description: Only migrations of this assessment.
    type: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.reads
seealso:
  - module: gpuvirt.gpuvirt.migration
'''

EXAMPLES = r'''
- name: Look for migrations that wait for a person
  gpuvirt.gpuvirt.migration_info:
    phase: waiting
  register: found

- name: Say why
  ansible.builtin.debug:
    msg: '{{ item.name }}: {{ item.reason }}'
  loop: '{{ found.migrations }}'
  loop_control: {label: '{{ item.name }}'}
'''

RETURN = r'''
migrations:
  description: The migrations.
  returned: success
  type: list
  elements: dict
  sample:
    - name: gpu7
      assessment: gpu7
      hostname: gpu7
      source: {address: gpu7.bank.example, port: 22, user: root, host_key: 'SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8', credential: gpu7}
      phase: waiting
      reason: there is no room for the mirror of nvme0n1
      operation: 01KAR2Z7T4Y2M8Q6V0R9X3B0AD
      created_by: root
      created: '2026-11-24T11:00:00Z'
      wanted: {name: '', bridge: br0, nics: [], convert: virt-v2v, checks: []}
      vm: {uuid: 37411364-8fe0-4c76-8c87-b532a3d4a617, name: gpu7, slices: []}
      attempts: []
      plan: {partitions: [], licence_token: true, memory_bytes: 0, threads: 0, disks: [], copy_bytes_per_second: 0, change_bytes_per_second: 0,
        downtime_seconds: 600, waivers: []}
      copy: {bandwidth_bytes_per_second: 0, interval_seconds: 600, connections: 2, compress: false}
      disks:
        - {name: nvme0n1, id: 'wwn:eui.0025388b91b0a1c2', size_bytes: 960197124096, passes_total: 0, passes: []}
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run

PHASES = ['planned', 'reserved', 'syncing', 'ready', 'rehearsing', 'cutting-over', 'verifying', 'done', 'waiting', 'rolling-back', 'rolled-back', 'failed']


def body(r):
    if r.params['name'] is not None:
        one = r.client.find('migrations', r.params['name'])
        r.result['migrations'] = [] if one is None else [one]
        return
    r.result['migrations'] = r.client.list('migrations', **r.given('phase', 'assessment'))


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str'),
            phase=dict(type='str', choices=PHASES),
            assessment=dict(type='str'),
        ),
        mutually_exclusive=[('name', 'phase'), ('name', 'assessment')],
    )


if __name__ == '__main__':
    main()
