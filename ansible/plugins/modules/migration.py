#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: migration
short_description: Move a physical server into a VM
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - A migration moves a server that was assessed, under a name of your choice. Its VM is defined and its partitions are reserved, and its disks are
    copied while it runs, pass by pass, until what is left to copy fits the downtime. The VM is rehearsed on a copy. Then the server is brought to
    rest, what is left is copied, the server is powered off, and the VM starts.
  - The plan says first which partitions of this host fit, and what is in the way. A migration whose plan is blocked is refused, with the blockers.
  - The same wish again changes nothing. What of I(copy) is another is changed, in the middle of a pass as well. Another I(assessment), I(plan) or
    I(vm) under a name that is taken fails, with what differs in C(differences), as all would have to be copied again.
  - Where a person must act, and where a rehearsal or a cut-over has failed, the task fails with the reason. The server goes on then, unless it was
    powered off already.
  - It takes an administrator.
options:
  name:
    description: The name of the migration. It has 1 to 63 of a-z, 0-9, C(.), C(_) and C(-), with a letter or digit at both ends.
    type: str
    required: true
  state:
    description:
      - C(present) has the copying begun, and does not wait for it. Where it stands still until a person acts, there is a warning.
      - C(ready) also waits until a cut-over would fit the downtime, as far as it is known what it takes, and fails where a person must act first.
      - C(rehearsed) also has the VM started once on a copy, with its partitions and without a network, looked at and taken down again. The server is
        at rest for as long as the last pass takes. Where the newest attempt is a rehearsal that has passed nothing is done, however long ago it was;
        C(attempts) say when.
      - C(done) powers the server off and starts the VM. The last rehearsal has to have passed, or I(unrehearsed) says why none has to.
        One that is rehearsed or cut over already is waited for.
      - C(rolled-back) has all taken away that was made here, and keeps what is known of it. One that is done cannot be taken back. A server that
        was powered off is not started again, and there is a warning.
      - C(absent) has what was copied removed, and the migration forgotten. It waits for that with I(wait=false) as well. Of one that is done, the VM
        and its disks stay.
      - One that was taken back is still there until it is forgotten. For all states but C(rolled-back) and C(absent) it is refused.
    type: str
    choices: [present, ready, rehearsed, done, rolled-back, absent]
    default: present
  assessment:
    description:
      - The assessment of the server, which has to be done, and made over ssh unless there is I(disks_from).
      - Needed for I(state=present), I(state=ready) and I(plan_only), and where the migration is to be begun.
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
        description: The downtime that a cut-over has to fit. If absent, the daemon says.
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
  vm:
    description:
      - What the VM is to be like, beside what the plan has. If absent, all has its default, and a migration that is there is not compared with it.
      - Where it is said, what is left out of it has its default, and is not taken from what is stored.
    type: dict
    suboptions:
      name:
        description: The name of the VM. If absent, that of the migration.
        type: str
      network:
        description: The network of libvirt that NICs are plugged into. Without it and I(bridge) their cable is out.
        type: str
      bridge:
        description: The bridge of the host that they are plugged into.
        type: str
      nics:
        description: Where single NICs of the server are plugged in. With neither network nor bridge the cable is out.
        type: list
        elements: dict
        suboptions:
          mac:
            description: The MAC address of the NIC, which it keeps.
            type: str
            required: true
          network:
            description: A network of libvirt.
            type: str
          bridge:
            description: A bridge of the host.
            type: str
      cpu:
        description: A model of libvirt, or C(host-passthrough), C(host-model) or C(maximum). If absent, C(host-passthrough).
        type: str
      emulated:
        description: Whether the processor is emulated, on a host without KVM. It is slow.
        type: bool
      convert:
        description: How the disks become those of a VM. C(none) is for a system that boots as a VM as it is. If absent, C(virt-v2v).
        type: str
        choices: [virt-v2v, none]
      checks:
        description: Commands that tell whether the workload is well. They are run in the VM, and on the server before.
        type: list
        elements: dict
        suboptions:
          name:
            description: A name, of a-z, 0-9 and C(-).
            type: str
            required: true
          command:
            description: The program and its arguments. There is no shell.
            type: list
            elements: str
            required: true
          seconds:
            description: How long it may take. In the VM it is tried again within that time until it passes. If absent, 60.
            type: int
          exit:
            description: The exit status that is right. If absent, 0.
            type: int
          output:
            description: A regular expression (RE2) that its output has to match. If absent, any output is right.
            type: str
  disks_from:
    description:
      - Where each disk is read of a server that is off. If absent the server runs, and is reached as it was when it was assessed.
      - Where it is said, what is stored has to be the same.
    type: list
    elements: dict
    suboptions:
      disk:
        description: The disk, as the server was inspected with.
        type: str
        required: true
      image:
        description: The path of a raw image or a block device of the host.
        type: path
      nbd:
        description: The URI of an export of NBD, or C(virt-p2v:) for the disk of a server that was started from virt-p2v and comes under the name of the assessment.
        type: str
  certificates:
    description: The name of a folder, in the host's folder of credentials, with the certificates for exports by C(nbds).
    type: str
  keys:
    description:
      - What encrypted volumes of the server are opened with by the conversion.
      - Those with a C(credential) are compared with what is stored. Passphrases are not shown by the daemon. They are sent when the migration is begun, and
        again where they are wanted, as the daemon was started since.
    type: list
    elements: dict
    suboptions:
      volume:
        description: The partition or the disk that the volume lies on, as the server names it, or the UUID of its LUKS header.
        type: str
        required: true
      credential:
        description: The name of a file with the passphrase in the folder of credentials of the host.
        type: str
      passphrase:
        description: The passphrase. The daemon holds it in memory.
        type: str
  lease_seconds:
    description:
      - For how long its partitions are kept while nobody does anything with it, 3600 or more, or 0 for as long as it goes on. If absent, the daemon says.
      - Another one than what is stored begins anew, and reserves partitions again that were given back. Where they are about to be given back, or were,
        there is a warning. I(state=rehearsed) and I(state=done) reserve them again by themselves, and fail where somebody else has them.
    type: int
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
        description: How many there are to the server at once, 1 to 16. The daemon takes 2 where nothing is said.
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
  stop_services:
    description:
      - For I(state=rehearsed) and I(state=done), units of the server that are stopped before it is brought to rest, for what they hold in memory.
        They are started again if it goes on.
    type: list
    elements: str
  limit_seconds:
    description: For I(state=rehearsed) and I(state=done), how long the server may be at rest. If absent, the downtime of the plan.
    type: int
  verify:
    description: For I(state=rehearsed) and I(state=done), whether all of the disks are compared meanwhile, and not only what was written.
    type: bool
    default: false
  live:
    description: For I(state=rehearsed), whether the server is not brought to rest. The copy is as after a power cut that took a while.
    type: bool
    default: false
  when_ready:
    description:
      - For I(state=done), whether the daemon waits until the last pass fits, days if need be, and the module need not. It is for I(wait=false).
      - C(gpuvirt migrate withdraw) takes that back.
    type: bool
    default: false
  unrehearsed:
    description: For I(state=done), why no rehearsal has to have passed.
    type: str
  source_off:
    description:
      - For I(state=done) of a migration with I(disks_from), that the server is off and stays so, which you have seen. Nobody can see it from the host.
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

- name: Try the VM on a copy
  gpuvirt.gpuvirt.migration:
    name: gpu7
    state: rehearsed
    timeout: 3600
  register: rehearsed

- name: Show what was found in it
  ansible.builtin.debug:
    msg: '{{ (rehearsed.migration.attempts | last).report.results }}'

- name: Power the server off, and start the VM
  gpuvirt.gpuvirt.migration:
    name: gpu7
    state: done
    stop_services: [model-server.service]
    timeout: 3600

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
    wanted: {name: '', bridge: br0, nics: [], convert: virt-v2v, checks: []}
    reservation: {state: reserved, lease_seconds: 2592000}
    reserved_until: '2026-12-24T12:00:00Z'
    vm: {uuid: 37411364-8fe0-4c76-8c87-b532a3d4a617, name: gpu7, slices: [{assignment: gpu7, profile: H100-2-20C, gpu: '0000:41:00.0'}]}
    attempts:
      - {kind: rehearsal, state: passed, actor: root, asked: '2026-11-24T12:00:00Z', wish: {stop_services: [], limit_seconds: 0, verify: false},
         rest_seconds: 8.2, left: [], report: {verdict: ok, results: []}}
    plan: {partitions: [], licence_token: true, memory_bytes: 0, threads: 0, disks: [], copy_bytes_per_second: 0, change_bytes_per_second: 0,
      downtime_seconds: 600, waivers: []}
    copy: {bandwidth_bytes_per_second: 200000000, interval_seconds: 600, connections: 2, compress: false}
    disks:
      - {name: nvme0n1, id: 'wwn:eui.0025388b91b0a1c2', size_bytes: 960197124096, passes_total: 2, passes: []}
    forecast: {final_seconds: 9.1, settled_seconds: 4.7, budget_seconds: 600, rest_seconds: 80.4, downtime_seconds: 138.6, fits: true, converges: true}
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
  description: What is done last, or in check mode would be.
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

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import moves
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import differences, options, run

# What the daemon has where nothing is said.
COPY = dict(bandwidth_bytes_per_second=0, interval_seconds=600, connections=2, compress=False)
PLAN = dict(
    partitions=[], prefer='', guest_driver='', licence_token=False, memory_bytes=0, threads=0, disks=[], copy_bytes_per_second=0,
    change_bytes_per_second=0, downtime_seconds=0, waivers=[])
PARTITION = {'source': '', 'gpu': '', 'profile': '', 'memory_bytes': 0, 'sms': 0, 'class': '', 'none': False}
VM = dict(name='', network='', bridge='', nics=[], cpu='', emulated=False, convert='virt-v2v', checks=[])
NIC = dict(mac='', network='', bridge='')
CHECK = dict(name='', command=[], seconds=0, exit=0, output='')

# How the server is brought to rest.
TRY = ('stop_services', 'limit_seconds', 'verify', 'live', 'when_ready', 'unrehearsed', 'source_off')


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


def whole_vm(wanted):
    """What is asked of a VM, likewise."""
    out = dict(VM, **wanted)
    out['nics'] = sorted((dict(NIC, **dict(n, mac=n['mac'].lower())) for n in out['nics']), key=lambda n: n['mac'])
    out['checks'] = [dict(CHECK, **c) for c in out['checks']]
    return out


def where(m):
    """Where disks are read of a server that is off."""
    return dict(
        disks_from=sorted((dict(dict(image='', nbd=''), **d) for d in m.get('disks_from') or []), key=lambda d: d['disk']),
        certificates=m.get('certificates') or '')


def view(m):
    """What --diff shows of a migration."""
    if m is None:
        return {}
    return dict(
        where(m), name=m['name'], assessment=m['assessment'], plan=whole(m['plan']), copy=m['copy'], vm=whole_vm(m.get('wanted') or {}),
        state=moves.standing(m))


def check_same(m, wish):
    """Refuse a wish that is not what is there."""
    name, differ = m['name'], differences(m, dict((f, wish[f]) for f in ('assessment',) if f in wish))
    if 'plan' in wish:
        differ.update(differences(whole(m['plan']), whole(wish['plan']), 'plan.'))
    if 'vm' in wish:
        differ.update(differences(whole_vm(m.get('wanted') or {}), whole_vm(wish['vm']), 'vm.'))
    if 'disks_from' in wish:
        differ.update(differences(where(m), where(wish)))
    if differ:
        raise Problem(
            'conflict', 'migration "{0}" is there, and of another plan'.format(name), status=409, differences=differ,
            hint='plan anew under another name, or take this one back first, with state absent: all is copied again then')
    moves.check_not_back(m)


def check_can_begin(r, wish, plan):
    """Refuse what the daemon refuses, in words that say what to do with Ansible."""
    assessment = wish['assessment']
    cannot, a = 'cannot migrate "{0}": '.format(wish['name']), r.client.get('assessments', assessment)
    if a['state'] != 'done':
        raise Problem(
            'conflict', cannot + 'assessment "{0}" is still {1}'.format(assessment, a['state']), status=409, operation=a['operation'],
            blockers=[dict(kind='operation', id=a['operation'])], hint='end it, with the module assessment and state finished')
    if 'source' not in a and not wish.get('disks_from'):
        raise Problem(
            'conflict', cannot + 'its inspection was carried here, and nobody has said how the server is reached', status=409,
            hint='assess it with a source, or say with disks_from where its disks are read while it is off')
    if plan['verdict']['state'] == 'blocked':
        raise Problem(
            'conflict', cannot + plan['verdict']['text'], status=409,
            blockers=[dict(kind='concern', id=c['id'], name=c['title']) for c in plan['verdict']['blockers']],
            hint='see migration_plan: each blocker has its remedy, or can be waived by name with a reason')
    for m in r.client.list('migrations', assessment=assessment):
        if m['phase'] not in ('done', 'rolled-back'):
            raise Problem(
                'busy', cannot + 'migration "{0}" moves this server already'.format(m['name']), status=423, operation=m['operation'],
                hint='one server is moved once at a time: take that one back first')


def begin(r, wish):
    """Begin a migration, and return it."""
    name, request = wish['name'], Request('POST', 'migrations', body=wish)
    plan = r.result['migration_plan'] = r.client.plan(request, refuse=False)
    check_can_begin(r, wish, plan)
    if plan.get('problem'):
        raise Problem.of(plan['problem'])
    if r.check:
        r.result['changed'] = True
        return dict(
            name=name, assessment=wish['assessment'], hostname=plan['assessment']['hostname'], phase='syncing', plan=plan['wish'],
            copy=dict(COPY, **wish.get('copy', {})), wanted=whole_vm(wish.get('vm', {})), attempts=[], **where(wish))
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
    return moves.there(r, name)


def change(r, m, copy):
    """Change how one that is there is copied, and return it."""
    if not differences(m['copy'], copy):
        return m
    if not r.carry_out(Request('PATCH', 'migrations', m['name'], body=dict(copy=copy))):
        return moves.there(r, m['name'])
    r.result['changed'] = True
    return dict(m, copy=dict(m['copy'], **copy)) if r.check else moves.there(r, m['name'])


def unlock(r, m, wish):
    """Give the keys of one that is there which it lacks, and return it."""
    now = dict((k['volume'], k) for k in m.get('keys') or [])
    lacks = [
        k for k in wish.get('keys', [])
        if k['volume'] not in now or now[k['volume']]['wanted'] or now[k['volume']].get('credential', '') != k.get('credential', '')]
    if not lacks or not r.carry_out(Request('PATCH', 'migrations', m['name'], body=dict(keys=lacks))):
        return m
    r.result['changed'] = True
    return m if r.check else moves.there(r, m['name'])


def lease(r, m, wish):
    """Have the partitions of one that is there kept for as long as is wished for, and return it."""
    now = m.get('reservation')
    if not now:
        return m
    if wish.get('lease_seconds', now['lease_seconds']) != now['lease_seconds']:
        if r.carry_out(Request('POST', 'migrations', m['name'], 'reserve', body=dict(lease_seconds=wish['lease_seconds']))):
            r.result['changed'] = True
            m = dict(m, reservation=dict(now, lease_seconds=wish['lease_seconds'])) if r.check else moves.there(r, m['name'])
    elif now['state'] == 'ending':
        r.ansible.warn('the partitions of migration "{0}" are given back if nobody does anything with it until {1}: gpuvirt migrate reserve {0}'.format(
            m['name'], m.get('reserved_until')))
    elif now['state'] in ('releasing', 'released'):
        r.ansible.warn('the partitions of migration "{0}" were given back, as nobody did anything with it: gpuvirt migrate reserve {0}'.format(m['name']))
    return m


def present(r, name):
    wish = dict((k, said(v)) for k, v in r.given('name', 'assessment', 'plan', 'vm', 'disks_from', 'certificates', 'keys', 'lease_seconds', 'copy').items())
    how, state = dict((k, v) for k, v in r.given(*TRY).items() if v), r.params['state']
    if r.params['plan_only']:
        r.result['migration_plan'] = r.client.plan(Request('POST', 'migrations', body=wish), refuse=False)
        return
    before = r.client.find('migrations', name)
    if before is None:
        if 'assessment' not in wish:
            raise Problem('not-found', 'there is no migration "{0}" that could be {1}'.format(name, state), status=404, hint='name the assessment to begin it')
        if state == 'done':
            moves.check_rehearsed(None, name, how)
        after = begin(r, wish)
    else:
        check_same(before, wish)
        after = lease(r, unlock(r, change(r, before, wish.get('copy', {})), wish), wish)
    r.result['migration'] = after
    if state in moves.TRIES and not moves.reached(after, state):
        after = moves.bring(r, after, state, how)
    elif state == 'ready' and r.params['wait'] and not r.check:
        after = moves.until_ready(r, after)
    elif after['phase'] == 'waiting':
        r.ansible.warn('migration "{0}" waits for a person: {1}'.format(name, after.get('reason')))
    r.result['migration'] = after
    shown, becomes = view(before), view(after)
    if 'lease_seconds' in wish:
        becomes['lease_seconds'] = wish['lease_seconds']
        if before is not None:
            shown['lease_seconds'] = (before.get('reservation') or wish)['lease_seconds']
    r.differ('migration ' + name, shown, becomes)


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


def told_to_start(r, m):
    """Warn of a server that was powered off, and is a person's to start again."""
    if m.get('fence') and not r.check:
        r.ansible.warn('the server of migration "{0}" was powered off, or may have been: start it again'.format(m['name']))


def rolled_back(r, name):
    before = after = r.client.find('migrations', name)
    if before is None:
        raise Problem('not-found', 'there is no migration "{0}" that could be rolled-back'.format(name), status=404)
    if before['phase'] != 'rolled-back':
        take_back(r, before)
        r.result['changed'] = True
        after = dict(before, phase='rolled-back') if r.check else moves.there(r, name)
        told_to_start(r, before)
    r.result['migration'] = after
    r.differ('migration ' + name, view(before), view(after))


def absent(r, name):
    before = r.client.find('migrations', name)
    if before is not None:
        try:
            if before['phase'] in ('done', 'rolled-back'):
                r.carry_out(Request('DELETE', 'migrations', name))
            else:
                take_back(r, before)
                if not r.check:
                    r.client.write(Request('DELETE', 'migrations', name))
                    told_to_start(r, before)
            r.result['changed'] = True
        except Problem as p:
            # Somebody else has deleted it meanwhile.
            if not p.is_gone():
                raise
        r.result['migration'] = before
    r.differ('migration ' + name, view(before), {})


def body(r):
    states = {'absent': absent, 'rolled-back': rolled_back}
    states.get(r.params['state'], present)(r, r.params['name'])


def main():
    run(
        body,
        argument_spec=options(
            name=dict(type='str', required=True),
            state=dict(type='str', choices=['present', 'ready', 'rehearsed', 'done', 'rolled-back', 'absent'], default='present'),
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
            vm=dict(type='dict', options=dict(
                name=dict(type='str'),
                network=dict(type='str'),
                bridge=dict(type='str'),
                nics=dict(type='list', elements='dict', options=dict(
                    mac=dict(type='str', required=True),
                    network=dict(type='str'),
                    bridge=dict(type='str'),
                ), mutually_exclusive=[('network', 'bridge')]),
                cpu=dict(type='str'),
                emulated=dict(type='bool'),
                convert=dict(type='str', choices=['virt-v2v', 'none']),
                checks=dict(type='list', elements='dict', options=dict(
                    name=dict(type='str', required=True),
                    command=dict(type='list', elements='str', required=True),
                    seconds=dict(type='int'),
                    exit=dict(type='int'),
                    output=dict(type='str'),
                )),
            ), mutually_exclusive=[('network', 'bridge')]),
            disks_from=dict(type='list', elements='dict', options=dict(
                disk=dict(type='str', required=True),
                image=dict(type='path'),
                nbd=dict(type='str'),
            ), required_one_of=[('image', 'nbd')], mutually_exclusive=[('image', 'nbd')]),
            certificates=dict(type='str'),
            keys=dict(type='list', elements='dict', no_log=False, options=dict(
                volume=dict(type='str', required=True),
                credential=dict(type='str'),
                passphrase=dict(type='str', no_log=True),
            ), required_one_of=[('credential', 'passphrase')], mutually_exclusive=[('credential', 'passphrase')]),
            lease_seconds=dict(type='int'),
            copy=dict(type='dict', options=dict(
                bandwidth_bytes_per_second=dict(type='int'),
                interval_seconds=dict(type='int'),
                connections=dict(type='int'),
                compress=dict(type='bool'),
            )),
            plan_only=dict(type='bool', default=False),
            stop_services=dict(type='list', elements='str'),
            limit_seconds=dict(type='int'),
            verify=dict(type='bool', default=False),
            live=dict(type='bool', default=False),
            when_ready=dict(type='bool', default=False),
            unrehearsed=dict(type='str'),
            source_off=dict(type='bool', default=False),
        ),
        required_if=[('state', 'present', ['assessment']), ('state', 'ready', ['assessment']), ('plan_only', True, ['assessment'])],
    )


if __name__ == '__main__':
    main()
