#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: mig
short_description: Cut a GPU by MIG
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Gives a GPU a layout of GPU instances. The smallest change is made that leads there.
  - Instances that the layout names stay, and those in use always do. Where one of these is in the way the task fails and names it.
    Instances that gpuvirt did not make are never removed.
  - To turn MIG on or off some cards are reset. Only the card itself is, and only if nobody uses it. C(needs_reset) of the plan
    says so beforehand.
  - The layout is put back after a reboot, with the same placements.
options:
  gpu:
    description: The GPU's id. That is its full PCI address.
    type: str
    required: true
  enabled:
    description: Whether MIG is on.
    type: bool
    default: true
  instances:
    description:
      - All GPU instances that there are to be, in any order. One that is not named goes, if gpuvirt made it.
      - Needed if MIG is on. C([]) is none.
    type: list
    elements: dict
    suboptions:
      profile:
        description: The profile, such as C(3g.20gb).
        type: str
        required: true
      placement:
        description: The first memory slice. If absent, where most room is left for large profiles.
        type: int
      compute:
        description: The profiles of its compute instances. If absent, one that fills it.
        type: list
        elements: str
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.mig_info
'''

EXAMPLES = r'''
- name: Cut a card into three, one of them shared by two programs
  gpuvirt.gpuvirt.mig:
    gpu: '0000:41:00.0'
    instances:
      - profile: 3g.20gb
        placement: 4
      - profile: 2g.10gb
        compute: [1c.2g.10gb, 1c.2g.10gb]
      - profile: 1g.5gb

- name: Turn MIG off
  gpuvirt.gpuvirt.mig:
    gpu: '0000:41:00.0'
    enabled: false
'''

RETURN = r'''
mig:
  description: How the GPU is cut now. In check mode C(wanted) is what would be asked for, and C(actual) as it is.
  returned: success
  type: dict
  sample:
    gpu: '0000:41:00.0'
    mode: {capable: true, current: true, pending: true}
    wanted:
      enabled: true
      instances:
        - {profile: 3g.20gb, placement: 4, compute: [3g.20gb]}
    actual:
      enabled: true
      instances:
        - {profile: 3g.20gb, placement: 4, compute: [3g.20gb]}
    equal: true
restart_required:
  description: Whether a VM that runs has it only from its next start on. Nothing that this module changes takes that, so it is false.
  returned: success
  type: bool
operation:
  description: The id of the operation that carried it out.
  returned: when there was one
  type: str
plan:
  description: What is done, or in check mode would be.
  returned: when something is to change
  type: dict
'''

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import options, run


def layout(params):
    """The layout that is asked for, as the daemon takes it."""
    instances = []
    for i in params['instances'] or []:
        instances.append(dict((k, v) for k, v in i.items() if v is not None))
    return dict(enabled=params['enabled'], instances=instances)


def is_there(want, mig):
    """Whether a layout surely is what there is and was asked for before.

    In doubt it is not, and the daemon plans.
    """
    if not mig['equal'] or 'wanted' not in mig or mig['wanted']['enabled'] != want['enabled']:
        return False

    def fits(i, there):
        # The order of the compute instances is the driver's.
        return there['profile'] == i['profile'] and sorted(there['compute']) == sorted(i.get('compute', [i['profile']])) \
            and i.get('placement', there['placement']) == there['placement']

    if len(mig['wanted']['instances']) != len(mig['actual']['instances']):
        return False  # there are foreign ones beside instances that were asked for one by one

    left = list(mig['wanted']['instances'])
    # Those with a place choose first.
    for i in sorted(want['instances'], key=lambda i: 'placement' not in i):
        for there in left:
            if fits(i, there):
                left.remove(there)
                break
        else:
            return False
    return not left


def body(r):
    name, want = r.params['gpu'], layout(r.params)
    if not want['enabled'] and want['instances']:
        r.ansible.fail_json(msg='instances are of no use where MIG is off: leave them out, or say enabled: true')
    before = r.client.get('gpus', name, 'mig')
    after = before
    if not is_there(want, before) and r.carry_out(Request('PUT', 'gpus', name, 'mig', body=want)):
        r.result['changed'] = True
        after = dict(before, wanted=want, equal=False) if r.check else r.client.get('gpus', name, 'mig')
    r.result['mig'] = after
    r.differ('layout of ' + name, before['actual'], after['wanted'] if r.check and r.result['changed'] else after['actual'])


def main():
    run(
        body,
        argument_spec=options(
            gpu=dict(type='str', required=True),
            enabled=dict(type='bool', default=True),
            instances=dict(type='list', elements='dict', options=dict(
                profile=dict(type='str', required=True),
                placement=dict(type='int'),
                compute=dict(type='list', elements='str'),
            )),
        ),
        required_if=[('enabled', True, ['instances'])],
    )


if __name__ == '__main__':
    main()
