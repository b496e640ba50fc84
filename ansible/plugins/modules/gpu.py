#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: gpu
short_description: Decide about a GPU
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Puts a GPU under the management of gpuvirt, or in quarantine, and sets its policy, placement and labels.
  - What is not given stays as it is. No hardware is touched.
  - Where another card is in the place than was put under management, the module warns and changes nothing about that. Whether the
    new card is meant is for a person to say, with C(gpuvirt gpu manage).
options:
  gpu:
    description: The GPU's id. That is its full PCI address, or its name where it is no PCI device.
    type: str
    required: true
  managed:
    description:
      - Whether gpuvirt may change this GPU.
      - A GPU with partitions that gpuvirt made cannot be taken out of management.
    type: bool
  quarantined:
    description: Whether nothing new is put on this GPU. What is there stays.
    type: bool
  policy:
    description:
      - What is done where the GPU is cut by MIG otherwise than was asked. C(report) tells it. C(repair) puts it back as well, where
        nothing in use and nothing foreign is touched.
    type: str
    choices: [report, repair]
  placement:
    description:
      - How vGPUs that share MIG instances are placed on the GPU where a request does not say. C(pack) puts them on an instance that has
        room. C(spread) makes one for each as long as that fits. C(host) is what the configuration of the daemon says.
    type: str
    choices: [pack, spread, host]
  labels:
    description:
      - All labels of the GPU. Those that are not named go. C({}) takes all away.
      - Values are strings. Numbers and booleans are turned into them.
    type: dict
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.gpu_info
'''

EXAMPLES = r'''
- name: Put a card under management
  gpuvirt.gpuvirt.gpu:
    gpu: '0000:41:00.0'
    managed: true
    labels:
      rack: b7

- name: Put nothing new on it
  gpuvirt.gpuvirt.gpu:
    gpu: '0000:41:00.0'
    quarantined: true
'''

RETURN = r'''
gpu:
  description: The GPU as it is now, or in check mode as it would be.
  returned: success
  type: dict
  sample:
    id: '0000:41:00.0'
    model: L40S
    managed: true
    quarantined: false
    policy: report
    placement: host
    labels: {rack: b7}
restart_required:
  description: Whether a VM that runs has it only from its next start on. Nothing that this module changes takes that, so it is false.
  returned: success
  type: bool
plan:
  description: What is done, or in check mode would be.
  returned: when something is to change
  type: dict
  sample:
    summary: change gpu 0000:41:00.0
    steps:
      - {kind: gpu.record, summary: 'put 0000:41:00.0 under management'}
    changes: true
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run

FIELDS = ('managed', 'quarantined', 'policy', 'placement', 'labels')


def text(value):
    if isinstance(value, bool):
        return str(value).lower()
    return '' if value is None else str(value)


def body(r):
    name = r.params['gpu']
    before = r.client.get('gpus', name)
    want = r.given(*FIELDS)
    if 'labels' in want:
        want['labels'] = dict((k, text(v)) for k, v in want['labels'].items())
    # What is as it should be is not said again: to say that a card is managed which
    # is another than before would be to say that this one is meant.
    change = dict((k, v) for k, v in want.items() if before[k] != v)
    after = before
    if change and r.carry_out(Request('PATCH', 'gpus', name, body=change)):
        r.result['changed'] = True
        after = dict(before, **change) if r.check else r.client.get('gpus', name)
    r.result['gpu'] = after
    for c in after['conditions']:
        if c['type'] == 'Drifted' and c['status']:
            r.ansible.warn('gpu {0}: {1}'.format(name, c['message']))
    r.differ('gpu ' + name, dict((f, before[f]) for f in FIELDS), dict((f, after[f]) for f in FIELDS))


def main():
    run(body, argument_spec=options(
        gpu=dict(type='str', required=True),
        managed=dict(type='bool'),
        quarantined=dict(type='bool'),
        policy=dict(type='str', choices=['report', 'repair']),
        placement=dict(type='str', choices=['pack', 'spread', 'host']),
        labels=dict(type='dict'),
    ))


if __name__ == '__main__':
    main()
