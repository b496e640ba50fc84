#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r'''
---
module: assessment
short_description: Look at a physical server whose GPU workload is to move into a VM
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - An assessment is the look at one physical server, under a name of your choice. The daemon makes it over ssh and watches the server's GPUs for a
    while, or it takes an inspection that C(gpuvirt p2v inspect) wrote on the server. The server is only read.
  - The same wish again changes nothing. Another one under a name that is taken fails, with what differs in C(differences). An assessment is never
    deleted and made anew behind your back. Say I(state=absent) first, or take another name.
  - It takes an administrator.
options:
  name:
    description: The name of the assessment. It has 1 to 63 of a-z, 0-9, C(.), C(_) and C(-), with a letter or digit at both ends.
    type: str
    required: true
  state:
    description:
      - C(present) has the server looked at if there is no assessment of the name.
      - C(finished) ends the watching of one that is there early, and keeps what was seen. It is refused while nothing was seen of the server yet.
      - C(absent) forgets it. One that is under way is aborted, and what was seen until then is lost.
    type: str
    choices: [present, finished, absent]
    default: present
  source:
    description:
      - The server, and how the daemon reaches it by ssh. It holds no secret.
      - Either this or I(inspection) is needed for I(state=present).
    type: dict
    suboptions:
      address:
        description: Its name of DNS or its IP address.
        type: str
        required: true
      port:
        description: The port of its ssh.
        type: int
        default: 22
      user:
        description: Who the daemon logs in as.
        type: str
        default: root
      host_key:
        description: The fingerprint of the server's key, as C(ssh-keygen -l) prints it there. A server with another key is not spoken to.
        type: str
        required: true
      credential:
        description: The name of the private key, a file in the daemon's folder of credentials (setting C(p2v.credentials)).
        type: str
        required: true
      sudo:
        description: Whether the inspector is run by sudo there, which must not ask for a password.
        type: bool
        default: false
  window_seconds:
    description:
      - For how long the GPUs of I(source) are watched, up to 60 days. If absent, they are looked at and not watched.
      - The task waits for it, unless I(wait=false). I(timeout) is mostly shorter, and the watching goes on then.
    type: int
  interval_seconds:
    description:
      - How often the GPUs are looked at meanwhile. If absent, the daemon says. An assessment that is there is not compared with that.
    type: int
  inspection:
    description:
      - The file that C(gpuvirt p2v inspect) wrote on the server, for one that the daemon cannot reach.
      - It lies where the module runs. With I(url) and C(delegate_to=localhost) that is the controller, else copy it to the host first.
    type: path
extends_documentation_fragment:
  - gpuvirt.gpuvirt.connection
  - gpuvirt.gpuvirt.connection.changes
seealso:
  - module: gpuvirt.gpuvirt.assessment_info
  - module: gpuvirt.gpuvirt.migration
'''

EXAMPLES = r'''
- name: Watch the GPUs of a server for two days
  gpuvirt.gpuvirt.assessment:
    name: gpu7
    source:
      address: gpu7.bank.example
      host_key: SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8
      credential: gpu7
    window_seconds: '{{ 2 * 24 * 3600 }}'
    wait: false

- name: What was seen is enough
  gpuvirt.gpuvirt.assessment:
    name: gpu7
    state: finished

- name: Bring an inspection to the host
  ansible.builtin.copy:
    src: files/gpu8.json
    dest: /var/tmp/gpu8.json
    mode: '0600'

- name: Assess it
  gpuvirt.gpuvirt.assessment:
    name: gpu8
    inspection: /var/tmp/gpu8.json
  register: gpu8

- name: Say what is in the way of a move
  ansible.builtin.debug:
    msg: '{{ item.title }}: {{ item.remedy }}'
  loop: '{{ gpu8.assessment.findings.concerns | selectattr("severity", "equalto", "blocker") }}'
  loop_control: {label: '{{ item.id }}'}

- name: Forget it
  gpuvirt.gpuvirt.assessment:
    name: gpu8
    state: absent
'''

RETURN = r'''
assessment:
  description:
    - The assessment as it is now, or for I(state=absent) as it was.
    - In check mode, of one that is new, what is known of it beforehand, without C(findings).
  returned: when there is or was one, or would be
  type: dict
  sample:
    name: gpu7
    state: done
    source: {address: gpu7.bank.example, port: 22, user: root, host_key: 'SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8', credential: gpu7}
    window_seconds: 172800
    interval_seconds: 5
    watched_seconds: 172800
    samples: 34560
    operation: 01KAR2Z7T4Y2M8Q6V0R9X3B0AC
    created_by: root
    created: '2026-11-23T11:00:00Z'
    heard: '2026-11-25T11:00:05Z'
    hostname: gpu7
    findings: {hostname: gpu7, workloads: [], concerns: [], needs: [], policy: {}}
restart_required:
  description: Whether a VM that runs has it only from its next start on. Nothing that this module changes takes that, so it is false.
  returned: success
  type: bool
operation:
  description: The id of the operation that looks at the server, or that was aborted.
  returned: when something was begun or aborted
  type: str
plan:
  description: What is done, or in check mode would be.
  returned: when something is to change
  type: dict
  sample:
    summary: assess gpu7.bank.example as gpu7
    steps:
      - {kind: assessment.inspect, summary: 'look at the server, and watch its GPUs for 48h0m0s'}
    changes: true
differences:
  description: The fields in which another assessment is there under the name.
  returned: failure
  type: dict
  sample:
    window_seconds: {stored: '86400', asked: '172800'}
'''

import json

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.module import differences, options, run

SHOWN = ('name', 'source', 'window_seconds')


def complete(source):
    """A source with what the daemon leaves out."""
    return dict(source, sudo=source.get('sudo', False))


def view(a):
    """What --diff shows of an assessment."""
    if a is None:
        return {}
    shown = dict((f, a[f]) for f in SHOWN if f in a)
    if 'source' in shown:
        shown['source'] = complete(shown['source'])
    return shown


def read(path):
    """What gpuvirt p2v inspect wrote into a file."""
    try:
        with open(path, 'rb') as f:
            doc = json.loads(f.read().decode('utf-8'))
    except (OSError, ValueError) as e:
        raise Problem('invalid', 'cannot read the inspection "{0}": {1}'.format(path, getattr(e, 'strerror', None) or e))
    if not isinstance(doc, dict):
        raise Problem('invalid', 'cannot read the inspection "{0}": it is none'.format(path), hint='gpuvirt p2v inspect on the server writes one')
    return doc


def essence(doc):
    """A document without what says nothing: the daemon leaves out some of that, and adds some."""
    if isinstance(doc, dict):
        pairs = [(k, essence(v)) for k, v in doc.items()]
        return dict((k, v) for k, v in pairs if v is not None and v is not False and v not in ('', 0, [], {}))
    if isinstance(doc, list):
        return [essence(v) for v in doc]
    return doc


def of_inspection(r, name, wish):
    """How an inspection differs from the one of an assessment that is there."""
    stored, asked = [essence(d) for d in (r.client.get('assessments', name, 'inspection'), wish['inspection'])]
    fields = sorted(f for f in set(stored) | set(asked) if stored.get(f) != asked.get(f))
    if not fields:
        return {}
    told = ['{0} of {1}'.format(d.get('hostname', 'a server'), d.get('taken', 'some time')) for d in (stored, asked)]
    if told[0] == told[1]:
        told[1] += ', with another ' + ', '.join(fields)
    return dict(inspection=dict(stored=told[0], asked=told[1]))


def check_same(r, there, wish):
    """Refuse a wish that is not what is there."""
    source = there.get('source')
    if source is None and 'inspection' in wish:
        differ = of_inspection(r, there['name'], wish)
    elif source is None or 'inspection' in wish:
        kinds = ('an inspection', 'the server {0}'.format((source or wish.get('source') or {}).get('address')))
        differ = dict(source=dict(stored=kinds[source is not None], asked=kinds[source is None]))
    else:
        differ = differences(complete(source), wish['source'], 'source.')
        differ.update(differences(there, dict((f, wish[f]) for f in ('interval_seconds',) if f in wish and there['window_seconds'])))
        differ.update(differences(there, dict(window_seconds=wish.get('window_seconds', 0))))
    if differ:
        raise Problem(
            'conflict', 'assessment "{0}" is there, and is of something else'.format(there['name']), status=409, differences=differ,
            hint='forget it first, with state absent, or take another name')


def look(r, name, wait):
    """The assessment, once nobody is at it any more where that is waited for."""
    a = r.client.find('assessments', name)
    if a is not None and a['state'] != 'done' and wait:
        op = r.client.wait(a['operation'])
        if op['status'] != 'done':
            raise Problem.of_operation(op)
        a = r.client.find('assessments', name)
    return a


def here(r, name, a):
    """The assessment, or why there is none any more."""
    if a is not None:
        return a
    op = r.client.find('operations', r.result['operation']) if 'operation' in r.result else None
    if op is not None and op['status'] in ('undone', 'failed'):
        raise Problem.of_operation(op)
    raise Problem('not-found', 'assessment "{0}" was there and is not any more: somebody else has deleted it'.format(name))


def expected(r, wish):
    """What a check knows of an assessment that would be made."""
    rests = 'inspection' in wish or r.params['wait']
    known = dict((f, wish[f]) for f in ('name', 'source', 'interval_seconds') if f in wish)
    return dict(known, state='done' if rests else 'inspecting', window_seconds=wish.get('window_seconds', 0))


def present(r, name):
    wish = r.given('name', 'source', 'window_seconds', 'interval_seconds')
    if r.params['inspection'] is not None:
        wish['inspection'] = read(r.params['inspection'])
    before = r.client.find('assessments', name)
    if before is not None:
        check_same(r, before, wish)
        after = here(r, name, look(r, name, r.params['wait'] and not r.check))
    else:
        r.carry_out(Request('POST', 'assessments', body=wish))
        r.result['changed'] = True
        after = expected(r, wish) if r.check else here(r, name, r.client.find('assessments', name))
    r.result['assessment'] = after
    r.differ('assessment ' + name, view(before), view(after))


def finished(r, name):
    before = after = r.client.find('assessments', name)
    if before is None:
        raise Problem('not-found', 'there is no assessment "{0}" that could be finished'.format(name), status=404)
    if before['state'] != 'done':
        # The daemon's dry run does not look at this, and the daemon refuses.
        if 'findings' not in before:
            raise Problem(
                'conflict', 'cannot finish assessment "{0}": nothing was seen of the server yet'.format(name), status=409,
                operation=before['operation'], hint='play it again later, or forget the assessment, with state absent')
        r.result['changed'] = r.carry_out(Request('POST', 'assessments', name, 'finish'))
        if r.check:
            after = dict(before, state='done') if r.params['wait'] else before
        else:
            after = here(r, name, look(r, name, r.params['wait']))
    r.result['assessment'] = after
    r.differ('assessment ' + name, dict(state=before['state']), dict(state=after['state']))


def stop(r, a):
    """Abort the look at a server. Whether the assessment went with it."""
    r.result['plan'] = dict(
        summary='stop the look at {0}, and delete assessment {1}'.format(a['source']['address'], a['name']), steps=[], changes=True)
    if r.check:
        return True
    r.result['operation'] = a['operation']
    try:
        r.client.write(Request('POST', 'operations', a['operation'], 'abort'))
    except Problem as p:
        if p.code != 'conflict' and not p.is_gone():
            raise
        return False  # It has ended meanwhile.
    r.result['changed'] = True
    if not r.params['wait']:
        return True
    op = r.client.wait(a['operation'])
    if op['status'] in ('waiting', 'failed'):
        raise Problem.of_operation(op)
    return op['status'] == 'undone'


def absent(r, name):
    before = r.client.find('assessments', name)
    if before is not None:
        try:
            if before['state'] == 'done' or not stop(r, before):
                r.carry_out(Request('DELETE', 'assessments', name))
            r.result['changed'] = True
        except Problem as p:
            # Somebody else has deleted it meanwhile.
            if not p.is_gone():
                raise
        r.result['assessment'] = before
    r.differ('assessment ' + name, view(before), {})


def main():
    run(
        lambda r: dict(present=present, finished=finished, absent=absent)[r.params['state']](r, r.params['name']),
        argument_spec=options(
            name=dict(type='str', required=True),
            state=dict(type='str', choices=['present', 'finished', 'absent'], default='present'),
            source=dict(type='dict', options=dict(
                address=dict(type='str', required=True),
                port=dict(type='int', default=22),
                user=dict(type='str', default='root'),
                host_key=dict(type='str', required=True, no_log=False),
                credential=dict(type='str', required=True, no_log=False),
                sudo=dict(type='bool', default=False),
            )),
            window_seconds=dict(type='int'),
            interval_seconds=dict(type='int'),
            inspection=dict(type='path'),
        ),
        required_if=[('state', 'present', ['source', 'inspection'], True)],
        mutually_exclusive=[('source', 'inspection'), ('inspection', 'window_seconds'), ('inspection', 'interval_seconds')],
    )


if __name__ == '__main__':
    main()
