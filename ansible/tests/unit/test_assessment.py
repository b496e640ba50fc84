# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""What the module for assessments asks of a daemon, and what it tells of the answer."""

import json
import os
import tempfile
import unittest

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import client as c

try:
    from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import module as m
    from ansible_collections.gpuvirt.gpuvirt.plugins.modules import assessment
except ImportError:  # there is no Ansible beside this interpreter
    m = None

SOURCE = dict(address='gpu7', port=22, user='root', host_key='SHA256:x', credential='gpu7', sudo=False)
# As the daemon has it, which leaves out what is false.
STORED = dict((k, v) for k, v in SOURCE.items() if v is not False)
DONE = dict(name='a', state='done', source=STORED, window_seconds=60, interval_seconds=5, operation='O1', findings={})
WATCHED = dict(DONE, state='watching')
CARRIED = dict(name='a', state='done', window_seconds=0, interval_seconds=0, findings={})
SEEN = dict(version=1, hostname='gpu7', taken='t', memory=dict(total_bytes=7, swap_bytes=0), disks=[], gpus=[dict(index=0, model='x')])


class Fake(object):
    """A daemon whose one assessment is there in turn as given, and whose operations end as given."""

    def __init__(self, *there, **more):
        self.there, self.ends, self.conflicts, self.asked = list(there), list(more.pop('ends', ())), more.pop('conflicts', False), []

    def find(self, what, name):
        self.asked.append('GET {0}'.format(what))
        if what == 'operations':
            return dict(id=name, status='undone', summary='look')
        return self.there.pop(0) if len(self.there) > 1 else self.there[0]

    def get(self, *names):
        self.asked.append('GET ' + '/'.join(names))
        return SEEN

    def plan(self, request):
        self.asked.append('plan {0}'.format(request))
        return dict(summary='x', steps=[], changes=True)

    def write(self, request):
        self.asked.append('{0}'.format(request))
        if request.names[-1] == 'abort' and self.conflicts:
            raise c.Problem('conflict', 'it has ended', status=409)
        return (None, dict(id='O1')) if request.names[-1] in ('assessments', 'abort') else ({}, None)

    def wait(self, operation):
        self.asked.append('wait ' + operation)
        return dict(id=operation, status=self.ends.pop(0), summary='look')


class Ansible(object):

    def __init__(self, check, params):
        self.check_mode, self.params = check, params


@unittest.skipIf(m is None, 'there is no Ansible beside this interpreter')
class TestAssessment(unittest.TestCase):

    def play(self, daemon, check=False, **params):
        values = dict((n, None) for n in m.NETWORK + ('source', 'inspection', 'window_seconds', 'interval_seconds'))
        values.update(dict(socket='/nowhere', wait=True, timeout=5, name='a', state='present'))
        values.update(params)
        r = m.Run(Ansible(check, values))
        r.client = daemon
        try:
            getattr(assessment, values['state'])(r, 'a')
        finally:
            self.result = r.result
        return r.result

    def refused(self, daemon, code, **params):
        with self.assertRaises(c.Problem) as caught:
            self.play(daemon, **params)
        self.assertEqual(caught.exception.code, code)
        return caught.exception

    def file(self, doc):
        f, path = tempfile.mkstemp()
        self.addCleanup(os.remove, path)
        with os.fdopen(f, 'w') as out:
            out.write(doc if isinstance(doc, str) else json.dumps(doc))
        return path

    def test_a_server_is_looked_at(self):
        daemon = Fake(None, DONE, ends=['done'])
        got = self.play(daemon, source=SOURCE, window_seconds=60)
        self.assertEqual(daemon.asked, ['GET assessments', 'plan POST /v1/assessments', 'POST /v1/assessments', 'wait O1', 'GET assessments'])
        self.assertEqual((got['changed'], got['operation'], got['assessment']), (True, 'O1', DONE))

    def test_a_check_says_the_same(self):
        real = self.play(Fake(None, DONE, ends=['done']), source=SOURCE, window_seconds=60)
        daemon = Fake(None)
        got = self.play(daemon, check=True, source=SOURCE, window_seconds=60)
        self.assertEqual(daemon.asked, ['GET assessments', 'plan POST /v1/assessments'])
        self.assertEqual((got['changed'], got['diff'], got['assessment']['state']), (True, real['diff'], 'done'))
        self.assertEqual(self.play(Fake(None), check=True, source=SOURCE, wait=False)['assessment']['state'], 'inspecting')

    def test_the_same_again_sends_nothing(self):
        for wish in (dict(window_seconds=60), dict(window_seconds=60, interval_seconds=5)):
            daemon = Fake(DONE)
            got = self.play(daemon, source=SOURCE, **wish)
            self.assertEqual(set(daemon.asked), {'GET assessments'})
            self.assertFalse(got['changed'])
            self.assertEqual(got['diff']['before'], got['diff']['after'])

    def test_one_under_way_is_waited_for(self):
        daemon = Fake(WATCHED, WATCHED, DONE, ends=['done'])
        got = self.play(daemon, source=SOURCE, window_seconds=60)
        self.assertEqual((got['changed'], got['assessment']), (False, DONE))
        self.assertIn('wait O1', daemon.asked)
        for more in (dict(wait=False), dict(check=True)):
            daemon = Fake(WATCHED)
            self.assertEqual(self.play(daemon, source=SOURCE, window_seconds=60, **more)['assessment'], WATCHED)
            self.assertNotIn('wait O1', daemon.asked)
        self.assertIn('undone', self.refused(Fake(WATCHED, ends=['undone']), 'internal', source=SOURCE, window_seconds=60).detail)

    def test_one_that_is_gone_at_once_says_why(self):
        p = self.refused(Fake(None), 'internal', source=SOURCE, wait=False)
        self.assertIn('cannot look', p.detail)

    def test_another_is_refused(self):
        for params, fields in (
            (dict(source=dict(SOURCE, port=23, sudo=True), window_seconds=60), {'source.port', 'source.sudo'}),
            (dict(source=SOURCE), {'window_seconds'}),
            (dict(source=SOURCE, window_seconds=60, interval_seconds=1), {'interval_seconds'}),
            (dict(inspection=self.file(SEEN)), {'source'}),
        ):
            daemon = Fake(DONE)
            self.assertEqual(set(self.refused(daemon, 'conflict', **params).differences), fields)
            self.assertEqual(daemon.asked, ['GET assessments'])
        self.refused(Fake(CARRIED), 'conflict', source=SOURCE)

    def test_inspections_are_compared_by_what_they_say(self):
        same = dict(SEEN, memory=dict(total_bytes=7), disks=None, unseen=[])
        got = self.play(Fake(CARRIED), inspection=self.file(same))
        self.assertFalse(got['changed'])
        p = self.refused(Fake(CARRIED), 'conflict', inspection=self.file(dict(SEEN, gpus=[dict(index=1, model='x')])))
        self.assertEqual(p.differences, dict(inspection=dict(stored='gpu7 of t', asked='gpu7 of t, with another gpus')))
        p = self.refused(Fake(CARRIED), 'conflict', inspection=self.file(dict(SEEN, hostname='gpu8')))
        self.assertEqual(p.differences['inspection']['asked'], 'gpu8 of t')

    def test_what_is_no_inspection(self):
        for path in ('/nowhere/a.json', self.file('x'), self.file([])):
            daemon = Fake(None)
            self.assertIn(path, self.refused(daemon, 'invalid', inspection=path).detail)
            self.assertEqual(daemon.asked, [])

    def test_finished(self):
        daemon = Fake(WATCHED, DONE, ends=['done'])
        got = self.play(daemon, state='finished')
        self.assertEqual(daemon.asked[1:3], ['plan POST /v1/assessments/a/finish', 'POST /v1/assessments/a/finish'])
        self.assertEqual((got['changed'], got['diff']['before'], got['diff']['after']), (True, dict(state='watching'), dict(state='done')))
        check = self.play(Fake(WATCHED), check=True, state='finished')
        self.assertEqual((check['changed'], check['diff']), (True, got['diff']))
        self.assertFalse(self.play(Fake(DONE), state='finished')['changed'])
        self.refused(Fake(None), 'not-found', state='finished')
        unseen = dict((k, v) for k, v in WATCHED.items() if k != 'findings')
        for check in (True, False):
            daemon = Fake(unseen)
            self.refused(daemon, 'conflict', check=check, state='finished')
            self.assertEqual(daemon.asked, ['GET assessments'])

    def test_absent(self):
        for there, ends, check, wait, asked in (
            (None, [], False, True, []),
            (DONE, [], False, True, ['plan DELETE /v1/assessments/a', 'DELETE /v1/assessments/a']),
            (DONE, [], True, True, ['plan DELETE /v1/assessments/a']),
            (WATCHED, ['undone'], False, True, ['POST /v1/operations/O1/abort', 'wait O1']),
            (WATCHED, ['done'], False, True,
             ['POST /v1/operations/O1/abort', 'wait O1', 'plan DELETE /v1/assessments/a', 'DELETE /v1/assessments/a']),
            (WATCHED, [], False, False, ['POST /v1/operations/O1/abort']),
            (WATCHED, [], True, True, []),
        ):
            daemon = Fake(there, ends=ends)
            got = self.play(daemon, check=check, wait=wait, state='absent')
            self.assertEqual(daemon.asked, ['GET assessments'] + asked)
            self.assertEqual((got['changed'], got['diff']['after']), (there is not None, {}))
        # It has ended before the abort came.
        daemon = Fake(WATCHED, conflicts=True)
        self.play(daemon, state='absent')
        self.assertEqual(daemon.asked[-1], 'DELETE /v1/assessments/a')
        self.refused(Fake(WATCHED, ends=['failed']), 'internal', state='absent')
        self.assertTrue(self.result['changed'])


if __name__ == '__main__':
    unittest.main()
