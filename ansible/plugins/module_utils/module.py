# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""What the modules have in common: options, plans before writes, and how they end."""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import SOCKET, Client, Problem

# How a daemon is reached over the network.
NETWORK = ('url', 'ca_path', 'client_cert', 'client_key', 'token')


def options(**own):
    """The options of a module, with those that all of them have."""
    return dict(
        own,
        socket=dict(type='path', default=SOCKET),
        url=dict(type='str'),
        ca_path=dict(type='path'),
        client_cert=dict(type='path'),
        client_key=dict(type='path'),
        token=dict(type='str', no_log=True),
        wait=dict(type='bool', default=True),
        timeout=dict(type='int', default=300),
    )


def differences(stored, asked, prefix=''):
    """The fields of what is asked that are otherwise stored, as the daemon tells such."""
    def text(v):
        return v if isinstance(v, str) else json.dumps(v, sort_keys=True)

    return dict((prefix + f, dict(stored=text(stored.get(f)), asked=text(asked[f]))) for f in asked if stored.get(f) != asked[f])


def run(body, **spec):
    """Run a module: body takes a Run. What the daemon refuses ends it with its fields."""
    ansible = AnsibleModule(supports_check_mode=True, **spec)
    if ansible.params['timeout'] < 1:
        ansible.fail_json(msg='timeout must be 1 at least, not {0}'.format(ansible.params['timeout']))
    try:
        r = Run(ansible)
    except Problem as p:
        ansible.fail_json(msg=p.message(), **dict(p.fields(), changed=False))
    try:
        body(r)
    except Problem as p:
        # A module's own "diff" is what --diff shows, so that of a wish is "differences".
        r.ansible.fail_json(msg=p.message(), **dict(r.result, **p.fields()))
    r.ansible.exit_json(**r.result)


class Run(object):
    """One run of a module. result is what it returns."""

    def __init__(self, ansible):
        self.ansible = ansible
        self.params = ansible.params
        self.check = ansible.check_mode
        self.client = Client(self.params['socket'], self.params['timeout'], **dict((n, self.params[n]) for n in NETWORK))
        self.result = dict(changed=False)

    def given(self, *names):
        """The options that were said, by name."""
        return dict((n, self.params[n]) for n in names if self.params[n] is not None)

    def each_gpu(self, what, gpu=None):
        """(something of each GPU that has it, GPUs that it cannot be told of); or of one."""
        found, unreadable = [], []
        for name in [gpu] if gpu is not None else [g['id'] for g in self.client.list('gpus')]:
            try:
                one = self.client.find('gpus', name, what)
            except Problem as p:
                # One sick GPU hides none of the others.
                if gpu is not None or p.status != 503:
                    raise
                unreadable.append(dict(gpu=name, code=p.code, detail=p.detail))
                self.ansible.warn('gpu {0} cannot be read: {1}'.format(name, p.detail))
                continue
            if one is not None:
                found.append(one)
        return found, unreadable

    def carry_out(self, request, more=False):
        """Plan a write, and do it where it changes something and this is no check.

        Returns whether it changes something. In a check that is what the daemon's dry
        run says, and otherwise what the same dry run said just before. Where another
        operation is at it, that one is waited for. Where more follow, each must have
        ended before the next begins.
        """
        def begin():
            plan = self.client.plan(request)
            if not plan['changes'] or self.check:
                return plan, None
            return plan, self.client.write(request)[1]

        plan, op = self.when_free(begin)
        if not plan['changes']:
            return False
        self.result['plan'] = plan
        self.finish(op, self.params['wait'] or more)
        return True

    def plan(self, request):
        """The plan alone."""
        return self.when_free(lambda: self.client.plan(request))

    def when_free(self, do):
        """Do something, again after another operation that was in its way."""
        while True:
            try:
                return do()
            except Problem as p:
                if not self.wait_for_holder(p):
                    raise

    def wait_for_holder(self, p):
        """Wait for the operation that a refusal names as at work. False: it does not help."""
        if p.code != 'busy' or not p.operation or not self.params['wait']:
            return False
        try:
            holder = self.client.wait(p.operation)
        except Problem as q:
            if q.code == 'timeout':
                q = Problem(**dict(p.fields(), detail='{0}, and has not ended within {1} seconds'.format(p.detail, self.params['timeout'])))
            raise q
        # Those hold what they hold until a person has seen to them.
        return holder['status'] not in ('waiting', 'failed')

    def finish(self, op, wait):
        """Keep the id of an operation of ours, if there is one, and wait for it if that is wanted."""
        if op is None:
            return
        self.result['operation'] = op['id']
        if not wait:
            return
        op = self.client.wait(op['id'])
        if op['status'] != 'done':
            raise Problem.of_operation(op)

    def differ(self, header, before, after):
        """Say what is different, for --diff; and that no VM has to start anew for it, where nothing else was said."""
        self.result.setdefault('restart_required', False)
        self.result['diff'] = dict(before=before, after=after, before_header=header, after_header=header)
