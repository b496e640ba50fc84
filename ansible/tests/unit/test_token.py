# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""What the module for tokens asks of a daemon, and what it tells of the answer."""

import unittest

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import client as c

try:
    from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import module as m
    from ansible_collections.gpuvirt.gpuvirt.plugins.modules import token
except ImportError:  # there is no Ansible beside this interpreter
    m = None

THERE = dict(id='T1', name='ci', role='viewer', created='c', expires='e')


class Fake(object):
    """A daemon that has one token, and makes others."""

    def __init__(self, *there):
        self.there, self.asked = list(there), []

    def list(self, what):
        self.asked.append('GET ' + what)
        return self.there

    def plan(self, request):
        self.asked.append('plan {0}'.format(request))
        return dict(summary='x', steps=[], changes=True)

    def write(self, request):
        self.asked.append('{0}'.format(request))
        if request.method == 'DELETE':
            return THERE, None
        return dict(token=dict(THERE, **request.body), secret='s3cret'), None


class Ansible(object):

    def __init__(self, check, params):
        self.check_mode, self.params = check, params


@unittest.skipIf(m is None, 'there is no Ansible beside this interpreter')
class TestToken(unittest.TestCase):

    def play(self, daemon, check=False, **params):
        values = dict((n, None) for n in m.NETWORK + ('role', 'expires'))
        values.update(dict(socket='/nowhere', wait=True, timeout=5, name='ci', state='present'))
        values.update(params)
        r = m.Run(Ansible(check, values))
        r.client = daemon
        token.body(r)
        return r.result

    def test_it_is_made_and_its_secret_told(self):
        daemon = Fake()
        got = self.play(daemon, role='viewer')
        self.assertTrue(got['changed'])
        self.assertEqual(got['secret'], 's3cret')
        self.assertEqual(got['token'], THERE)
        self.assertEqual(daemon.asked, ['GET tokens', 'plan POST /v1/tokens', 'POST /v1/tokens'])
        self.assertEqual(got['diff']['after'], dict(name='ci', role='viewer'))

    def test_a_check_makes_none(self):
        daemon = Fake()
        got = self.play(daemon, check=True, role='viewer', expires='2027-01-01T00:00:00Z')
        self.assertEqual(daemon.asked, ['GET tokens', 'plan POST /v1/tokens'])
        self.assertTrue(got['changed'])
        self.assertNotIn('secret', got)
        self.assertEqual(got['diff']['after'], dict(name='ci', role='viewer', expires='2027-01-01T00:00:00Z'))

    def test_the_second_time_nothing_is_sent(self):
        daemon = Fake(THERE, dict(THERE, id='T3', name='other', role='admin'))
        got = self.play(daemon, role='viewer')
        self.assertFalse(got['changed'])
        self.assertEqual(got['token'], THERE)
        self.assertEqual(daemon.asked, ['GET tokens'])
        self.assertEqual(got['diff']['before'], got['diff']['after'])

    def test_another_role_is_not_given_behind_your_back(self):
        daemon = Fake(THERE)
        with self.assertRaises(c.Problem) as caught:
            self.play(daemon, role='admin')
        self.assertEqual(caught.exception.differences, dict(role=dict(stored='viewer', asked='admin')))
        self.assertEqual(daemon.asked, ['GET tokens'])

    def test_it_is_taken_back(self):
        daemon = Fake(THERE, dict(THERE, id='T3', name='other'))
        got = self.play(daemon, state='absent')
        self.assertEqual(daemon.asked, ['GET tokens', 'plan DELETE /v1/tokens/T1', 'DELETE /v1/tokens/T1'])
        self.assertTrue(got['changed'])
        self.assertEqual(got['diff']['after'], {})
        daemon = Fake()
        self.assertFalse(self.play(daemon, state='absent')['changed'])
        self.assertEqual(daemon.asked, ['GET tokens'])
        daemon = Fake(THERE)
        self.assertTrue(self.play(daemon, check=True, state='absent')['changed'])
        self.assertEqual(daemon.asked, ['GET tokens', 'plan DELETE /v1/tokens/T1'])


if __name__ == '__main__':
    unittest.main()
