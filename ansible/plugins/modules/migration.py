#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: migration
short_description: Plan the move of a physical server into a VM, and copy its disks
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - A migration moves a server that was assessed, under a name of your choice. Its disks are copied while it runs, pass by pass, until what is left
    to copy fits the downtime. The server is only read. Cutting over to the VM is not there yet.
  - The plan says first which partitions of this host fit, and what is in the way. A migration whose plan is blocked is refused, with the blockers.
  - The same wish again changes nothing. What of I(copy) is another is changed, in the middle of a pass as well. Another I(assessment) or I(plan)
    under a name that is taken fails, with what differs in C(differences), as all would have to be copied again.
  - It takes an administrator.
options:
  name:
    description: The name of the migration. It has 1 to 63 of a-z, 0-9, C(.), C(_) and C(-), with a letter or digit at both ends.
    type: str
    required: true
  state:
    description:
      - C(present) has the copying begun, and does not wait for it. Where it stands still until a person acts, there is a warning.
      - C(ready) also waits until one more pass would fit the downtime, and fails where a person must act first.
      - C(absent) has what was copied removed, and the migration forgotten. It waits for that with I(wait=false) as well.
      - One that was taken back is still there until it is forgotten. For C(present) and C(ready) it is refused.
    type: str
    choices: [present, ready, absent]
    default: present
  assessment:
    description: The assessment of the server, which has to be done and made over ssh. Needed for I(state=present) and I(state=ready).
    type: str
  plan:
    description:
      - What is asked of the plan. If absent, nothing is asked, and a migration that is there is not compared with it.
      - Where it is said, what is left out of it has its default, and is not taken from what is stored.
    type: dict
    suboptions:
      partitions:
        description: What is asked for GPUs of the server, one by one.
        type: list
        elements: dict
        suboptions:
          source:
            description: The address of a GPU of the server. If absent, it is a partition beside those for what was seen, and I(profile) is needed.
            type: str
          gpu:
            description: A GPU of this host. If absent, any.
            type: str
          profile:
            description: The profile, by its exact name. If absent, any.
            type: str
          memory_bytes:
            description: In place of what was measured.
            type: int
          sms:
            description: Multiprocessors, in place of what was measured.
            type: int
          class:
            description: What it is for, in place of what was seen.
            type: str
            choices: [compute, graphics]
          none:
            description: Whether there is to be no partition for this GPU.
            type: bool
      prefer:
        description: A way of sharing that comes first among those that fit.
        type: str
        choices: [card, mig-backed, time-sliced]
      guest_driver:
        description: The version of the vGPU guest driver that is ready.
        type: str
      licence_token:
        description: Whether a licence token for the guest is ready.
        type: bool
      memory_bytes:
        description: The memory of the VM. If absent, as much as the server has.
        type: int
      threads:
        description: The processors of the VM. If absent, as many as the server has.
        type: int
      disks:
        description: The disks that are moved, as the server names them. If absent, all that are not removable.
        type: list
        elements: str
      copy_bytes_per_second:
        description: What the copy is known to reach.
        type: int
      change_bytes_per_second:
        description: What the server is known to write to other places.
        type: int
      downtime_seconds:
        description: The downtime that the last pass has to fit. If absent, the daemon says.
        type: float
      waivers:
        description: Blockers that do not count.
        type: list
        elements: dict
        suboptions:
          id:
            description: The id of the concern.
            type: str
            required: true
          reason:
            description: Who decided it, and why.
            type: str
            required: true
  copy:
    description: How the disks are copied. What is left out stays as it is, or for a new migration is for the daemon to say.
    type: dict
    suboptions:
      bandwidth_bytes_per_second:
        description: What comes from the server at most. It is 65536 or more, or 0 for no bound.
        type: int
      interval_seconds:
        description: From the beginning of one pass to that of the next, 10 to 86400.
        type: int
      connections:
        description: How many there are to the server at once, 1 to 16.
        type: int
      compress:
        description: Whether the server compresses what it sends, for slow networks.
        type: bool
  plan_only:
    description:
      - Whether the plan alone is made, on this host as it is now, and nothing changed. It is returned in C(migration_plan) also where it is blocked.
      - The plan is that of a new migration. Whether one of the name is there does not matter.
    type: bool
    default: false
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.migration_info
  - module: gpuvirt.gpuvirt.assessment
'''

EXAMPLES = r'''
- name: Plan, and look what is in the way
  gpuvirt.gpuvirt.migration:
    name: gpu7
    assessment: gpu7
    plan: &plan
      guest_driver: 580.95.05
      licence_token: true
      downtime_seconds: 600
    plan_only: true
  register: planned

- name: Show it
  ansible.builtin.debug:
    msg: '{{ planned.migration_plan.verdict }}'

- name: Begin to copy
  gpuvirt.gpuvirt.migration:
    name: gpu7
    assessment: gpu7
    plan: *plan
    copy:
      bandwidth_bytes_per_second: 200000000

- name: Copy slower by day
  gpuvirt.gpuvirt.migration:
    name: gpu7
    assessment: gpu7
    copy:
      bandwidth_bytes_per_second: 50000000

- name: Wait until little is left to copy
  gpuvirt.gpuvirt.migration:
    name: gpu7
    assessment: gpu7
    state: ready
    timeout: 86400

- name: Take it back
  gpuvirt.gpuvirt.migration:
    name: gpu7
    state: absent
'''

RETURN = r'''
migration:
  description:
    - The migration as it is now, or for I(state=absent) as it was.
    - In check mode, of one that is new, what is known of it beforehand.
    - In templates, how it is copied is C(migration['copy']), as C(migration.copy) is something of Python's.
  returned: when there is or was one, or would be, and not with I(plan_only)
  type: dict
  sample:
    name: gpu7
    assessment: gpu7
    hostname: gpu7
    source: {address: gpu7.bank.example, port: 22, user: root, host_key: 'SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8', credential: gpu7}
    phase: ready
    operation: 01KAR2Z7T4Y2M8Q6V0R9X3B0AD
    created_by: root
    created: '2026-11-24T11:00:00Z'
    heard: '2026-11-24T13:20:11Z'
    plan: {partitions: [], licence_token: true, memory_bytes: 0, threads: 0, disks: [], copy_bytes_per_second: 0, change_bytes_per_second: 0,
      downtime_seconds: 600, waivers: []}
    copy: {bandwidth_bytes_per_second: 200000000, interval_seconds: 600, connections: 4, compress: false}
    disks:
      - {name: nvme0n1, id: 'wwn:eui.0025388b91b0a1c2', size_bytes: 960197124096, passes_total: 2, passes: []}
    forecast: {final_seconds: 9.1, settled_seconds: 4.7, budget_seconds: 600, fits: true, converges: true}
migration_plan:
  description: How the server would be moved to this host, and whether it can be. Nothing is reserved by it.
  returned: with I(plan_only), and when a migration is begun, or in check mode would be, also where that is refused as the plan is blocked
  type: dict
  sample:
    fittings: []
    drivers: []
    changes: []
    estimates: {disk_bytes: 1385150021632}
    verdict: {state: ready, text: Ready., blockers: [], warnings: [], waived: []}
operation:
  description: The id of the operation that carries it out.
  returned: when something was begun
  type: str
plan:
  description: What is done, or in check mode would be.
  returned: when something is to change of a migration that is there
  type: dict
  sample:
    summary: change how gpu7 is copied
    steps: []
    changes: true
differences:
  description: The fields in which another migration is there under the name.
  returned: failure
  type: dict
  sample:
    plan.guest_driver: {stored: 580.65.06, asked: 580.95.05}
'''

import time

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import differences, options, run

# What the daemon has where nothing is said.
COPY = dict(bandwidth_bytes_per_second=0, interval_seconds=600, connections=4, compress=False)
PLAN = dict(
    partitions=[], prefer='', guest_driver='', licence_token=False, memory_bytes=0, threads=0, disks=[], copy_bytes_per_second=0,
    change_bytes_per_second=0, downtime_seconds=0, waivers=[])
PARTITION = {'source': '', 'gpu': '', 'profile': '', 'memory_bytes': 0, 'sms': 0, 'class': '', 'none': False}

# Phases of one that was taken back, and does not come again.
BACK = ('rolling-back', 'rolled-back', 'failed')

# Seconds between two looks at one that gets ready.
PAUSE = 2


def said(value):
    """What was said of nested options."""
    if isinstance(value, dict):
        return dict((k, said(v)) for k, v in value.items() if v is not None)
    return [said(v) for v in value] if isinstance(value, list) else value


def whole(plan):
    """What is asked of a plan, with what was left out, so that two can be compared."""
    out = dict(PLAN, **plan)
    out['partitions'] = [dict(PARTITION, **p) for p in out['partitions']]
    out['disks'] = sorted(out['disks'])
    # Who waived it is for the daemon to say.
    out['waivers'] = sorted((dict(id=w['id'], reason=w['reason']) for w in out['waivers']), key=lambda w: (w['id'], w['reason']))
    return out


def view(m):
    """What --diff shows of a migration."""
    return {} if m is None else dict(name=m['name'], assessment=m['assessment'], plan=whole(m['plan']), copy=m['copy'])


def check_same(m, wish):
    """Refuse a wish that is not what is there."""
    name, differ = m['name'], differences(m, dict(assessment=wish['assessment']))
    if 'plan' in wish:
        differ.update(differences(whole(m['plan']), whole(wish['plan']), 'plan.'))
    if differ:
        raise Problem(
            'conflict', 'migration "{0}" is there, and of another plan'.format(name), status=409, differences=differ,
            hint='plan anew under another name, or take this one back first, with state absent: all is copied again then')
    if m['phase'] in BACK:
        raise Problem(
            'conflict', 'migration "{0}" is {1}{2}'.format(name, m['phase'], ': ' + m['reason'] if m.get('reason') else ''), status=409,
            operation=m['operation'], hint='forget it, with state absent, before it is begun anew')


def check_can_begin(r, name, assessment, plan):
    """Refuse what the daemon refuses, in words that say what to do with Ansible."""
    cannot, a = 'cannot migrate "{0}": '.format(name), r.client.get('assessments', assessment)
    if a['state'] != 'done':
        raise Problem(
            'conflict', cannot + 'assessment "{0}" is still {1}'.format(assessment, a['state']), status=409, operation=a['operation'],
            blockers=[dict(kind='operation', id=a['operation'])], hint='end it, with the module assessment and state finished')
    if 'source' not in a:
        raise Problem(
            'conflict', cannot + 'its inspection was carried here, and nobody has said how the server is reached', status=409,
            hint='assess it with a source')
    if plan['verdict']['state'] == 'blocked':
        raise Problem(
            'conflict', cannot + plan['verdict']['text'], status=409,
            blockers=[dict(kind='concern', id=c['id'], name=c['title']) for c in plan['verdict']['blockers']],
            hint='see migration_plan: each blocker has its remedy, or can be waived by name with a reason')
    for m in r.client.list('migrations', assessment=assessment):
        if m['phase'] != 'rolled-back':
            raise Problem(
                'busy', cannot + 'migration "{0}" moves this server already'.format(m['name']), status=423, operation=m['operation'],
                hint='one server is moved once at a time: take that one back first')


def begin(r, wish):
    """Begin a migration, and return it."""
    name, request = wish['name'], Request('POST', 'migrations', body=wish)
    plan = r.result['migration_plan'] = r.client.plan(request, refuse=False)
    check_can_begin(r, name, wish['assessment'], plan)
    if plan.get('problem'):
        raise Problem.of(plan['problem'])
    if r.check:
        r.result['changed'] = True
        return dict(
            name=name, assessment=wish['assessment'], hostname=plan['assessment']['hostname'], phase='syncing', plan=plan['wish'],
            copy=dict(COPY, **wish.get('copy', {})))
    try:
        r.result['operation'] = r.client.write(request)[1]['id']
    except Problem as p:
        # Somebody else may have begun it a moment before.
        m = r.client.find('migrations', name) if p.code == 'conflict' else None
        if m is None:
            raise
        check_same(m, wish)
        r.result['operation'] = m['operation']
    r.result['changed'] = True
    return there(r, name)


def there(r, name):
    """The migration. The daemon may be starting anew meanwhile."""
    try:
        return r.client.send(Request('GET', 'migrations', name), patient=True)[1]
    except Problem as p:
        if p.is_gone():
            raise Problem('not-found', 'migration "{0}" was there and is not any more: somebody else has deleted it'.format(name))
        raise


def change(r, m, copy):
    """Change how one that is there is copied, and return it."""
    if not differences(m['copy'], copy):
        return m
    if not r.carry_out(Request('PATCH', 'migrations', m['name'], body=dict(copy=copy))):
        return there(r, m['name'])
    r.result['changed'] = True
    return dict(m, copy=dict(m['copy'], **copy)) if r.check else there(r, m['name'])


def forecast(m):
    f = m.get('forecast')
    if not f:
        return 'the first pass has not ended'
    text = 'the last pass would take {0:.0f} of {1:.0f} seconds'.format(f['final_seconds'], f['budget_seconds'])
    return text if f['converges'] else text + ', and does not get shorter'


def until_ready(r, m):
    """Wait until one is ready, and return it."""
    name = m['name']
    while m['phase'] != 'ready':
        if m['phase'] == 'waiting':
            raise Problem(
                'waiting', 'migration "{0}" waits for a person: {1}'.format(name, m.get('reason')), operation=m['operation'],
                hint='then it goes on: gpuvirt migrate retry ' + name)
        check_same(m, dict(assessment=m['assessment']))
        if r.client.left() <= 0:
            raise Problem(
                'timeout', 'migration "{0}" is not ready within {1} seconds, and goes on: {2}'.format(name, r.params['timeout'], forecast(m)),
                operation=m['operation'], hint='ask for more with timeout, or let it have more bandwidth')
        time.sleep(min(PAUSE, max(0, r.client.left())))
        m = there(r, name)
    return m


def present(r, name):
    wish = dict((k, said(v)) for k, v in r.given('name', 'assessment', 'plan', 'copy').items())
    if r.params['plan_only']:
        r.result['migration_plan'] = r.client.plan(Request('POST', 'migrations', body=wish), refuse=False)
        return
    before = r.client.find('migrations', name)
    if before is None:
        after = begin(r, wish)
    else:
        check_same(before, wish)
        after = change(r, before, wish.get('copy', {}))
    r.result['migration'] = after
    r.differ('migration ' + name, view(before), view(after))
    if r.params['state'] == 'ready' and r.params['wait'] and not r.check:
        r.result['migration'] = until_ready(r, after)
    elif after['phase'] == 'waiting':
        r.ansible.warn('migration "{0}" waits for a person: {1}'.format(name, after.get('reason')))


def take_back(r, m):
    """Have what was made of one removed, and wait for it."""
    name = m['name']
    if m['phase'] == 'failed':
        raise Problem(
            'conflict', 'migration "{0}" was taken back, and that failed: {1}'.format(name, m.get('reason')), status=409, operation=m['operation'],
            hint='when it is mended: gpuvirt migrate retry ' + name)
    request = Request('POST', 'migrations', name, 'rollback')
    r.result['plan'] = r.plan(request)
    if r.check:
        return
    r.result['operation'] = m['operation']
    r.client.write(request)
    r.result['changed'] = True
    op = r.client.wait(m['operation'])
    if op['status'] != 'undone':
        raise Problem.of_operation(op)


def absent(r, name):
    before = r.client.find('migrations', name)
    if before is not None:
        try:
            if before['phase'] != 'rolled-back':
                take_back(r, before)
                if not r.check:
                    r.client.write(Request('DELETE', 'migrations', name))
            else:
                r.carry_out(Request('DELETE', 'migrations', name))
            r.result['changed'] = True
        except Problem as p:
            # Somebody else has deleted it meanwhile.
            if not p.is_gone():
                raise
        r.result['migration'] = before
    r.differ('migration ' + name, view(before), {})


def body(r):
    if r.params['state'] == 'absent':
        absent(r, r.params['name'])
    else:
        present(r, r.params['name'])


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str', required=True),
            state=dict(type='str', choices=['present', 'ready', 'absent'], default='present'),
            assessment=dict(type='str'),
            plan=dict(type='dict', options=dict(
                partitions=dict(type='list', elements='dict', options={
                    'source': dict(type='str'),
                    'gpu': dict(type='str'),
                    'profile': dict(type='str'),
                    'memory_bytes': dict(type='int'),
                    'sms': dict(type='int'),
                    'class': dict(type='str', choices=['compute', 'graphics']),
                    'none': dict(type='bool'),
                }),
                prefer=dict(type='str', choices=['card', 'mig-backed', 'time-sliced']),
                guest_driver=dict(type='str'),
                licence_token=dict(type='bool', no_log=False),
                memory_bytes=dict(type='int'),
                threads=dict(type='int'),
                disks=dict(type='list', elements='str'),
                copy_bytes_per_second=dict(type='int'),
                change_bytes_per_second=dict(type='int'),
                downtime_seconds=dict(type='float'),
                waivers=dict(type='list', elements='dict', options=dict(
                    id=dict(type='str', required=True),
                    reason=dict(type='str', required=True),
                )),
            )),
            copy=dict(type='dict', options=dict(
                bandwidth_bytes_per_second=dict(type='int'),
                interval_seconds=dict(type='int'),
                connections=dict(type='int'),
                compress=dict(type='bool'),
            )),
            plan_only=dict(type='bool', default=False),
        ),
        required_if=[('state', 'present', ['assessment']), ('state', 'ready', ['assessment'])],
    )


if __name__ == '__main__':
    main()
