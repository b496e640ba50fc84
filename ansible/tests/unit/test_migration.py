# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""What the module for migrations asks of a daemon, and what it tells of the answer."""

import unittest

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import client as c

try:
    from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import module as m
    from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import moves
    from ansible_collections.gpuvirt.gpuvirt.plugins.modules import migration
except ImportError:  # there is no Ansible beside this interpreter
    m = None

WISH = dict(partitions=[], licence_token=True, memory_bytes=0, threads=4, disks=[], copy_bytes_per_second=0, change_bytes_per_second=0,
            downtime_seconds=600, waivers=[dict(id='x', reason='y', by='root')])
ASKED = dict(partitions=None, licence_token=True, threads=4, downtime_seconds=600.0, waivers=[dict(id='x', reason='y')])
COPY = dict(bandwidth_bytes_per_second=0, interval_seconds=600, connections=2, compress=False)
THERE = dict(name='a', assessment='s', hostname='gpu7', phase='syncing', operation='O1', plan=WISH, copy=COPY)
FORECAST = dict(final_seconds=9, budget_seconds=600, fits=True, converges=True)
READY = dict(THERE, phase='ready', forecast=FORECAST)
DONE = dict(THERE, phase='done', fence='off')


def tried(m, *attempts, **more):
    """A migration of which something was tried: kind, state and why."""
    return dict(m, attempts=[dict(zip(('kind', 'state', 'problem'), a.split(' ', 2))) for a in attempts], **more)


PLAN = dict(assessment=dict(hostname='gpu7'), wish=WISH, verdict=dict(state='ready', text='Ready.', blockers=[]))
BLOCKED = dict(PLAN, verdict=dict(state='blocked', text='Blocked: no.', blockers=[dict(id='disk-room', title='No room')]))
SEEN = dict(name='s', state='done', source={}, operation='O0')


class Fake(object):
    """A daemon whose one migration is there in turn as given."""

    timeout = 0

    def __init__(self, *there, **more):
        self.there, self.asked = list(there), []
        self.refused = more.pop('refused', False)
        self.planned, self.seen = more.pop('planned', PLAN), more.pop('seen', SEEN)
        self.others, self.end, self.raced, self.seconds = more.pop('others', []), more.pop('end', 'undone'), more.pop('raced', False), more.pop('seconds', 9)

    def find(self, what, name):
        self.asked.append('GET ' + what)
        return self.there.pop(0) if len(self.there) > 1 else self.there[0]

    def send(self, request, patient=False):
        found = self.find(*request.names)
        if found is None:
            raise c.Problem('not-found', 'x', status=404)
        return 200, found

    def get(self, *names):
        self.asked.append('GET ' + '/'.join(names))
        return self.seen

    def list(self, what, **filters):
        self.asked.append('GET {0} of {1}'.format(what, filters['assessment']))
        return self.others

    def plan(self, request, refuse=True):
        self.asked.append('plan {0}'.format(request))
        return self.planned if request.names == ('migrations',) else dict(summary='x', steps=[], changes=True)

    def write(self, request):
        self.asked.append('{0}'.format(request))
        self.body = request.body
        if self.refused:
            raise c.Problem('conflict', 'a rehearsal is under way', status=409)
        if request.names == ('migrations',):
            if self.raced:
                raise c.Problem('conflict', 'there is one', status=409)
            return None, dict(id='O1')
        return {}, None

    def wait(self, operation):
        self.asked.append('wait ' + operation)
        return dict(id=operation, status=self.end, summary='move')

    def left(self):
        self.seconds -= 1
        return self.seconds


class Ansible(object):

    def __init__(self, check, params):
        self.check_mode, self.params, self.warnings = check, params, []

    def warn(self, text):
        self.warnings.append(text)


CREATE = ['GET migrations', 'plan POST /v1/migrations', 'GET assessments/s', 'GET migrations of s', 'POST /v1/migrations', 'GET migrations']


@unittest.skipIf(m is None, 'there is no Ansible beside this interpreter')
class TestMigration(unittest.TestCase):

    def setUp(self):
        self.pause, moves.PAUSE = moves.PAUSE, 0

    def tearDown(self):
        moves.PAUSE = self.pause

    def play(self, daemon, check=False, **params):
        values = dict((n, None) for n in m.NETWORK + migration.TRY + ('plan', 'copy', 'vm', 'disks_from', 'certificates', 'lease_seconds', 'keys'))
        values.update(dict(socket='/nowhere', wait=True, timeout=5, name='a', assessment='s', state='present', plan_only=False))
        values.update(params)
        self.run = m.Run(Ansible(check, values))
        self.run.client = daemon
        migration.body(self.run)
        return self.run.result

    def refused(self, daemon, code, **params):
        with self.assertRaises(c.Problem) as caught:
            self.play(daemon, **params)
        self.assertEqual(caught.exception.code, code)
        return caught.exception

    def test_it_is_begun(self):
        daemon = Fake(None, THERE)
        got = self.play(daemon, plan=ASKED, copy=dict(connections=None, compress=False))
        self.assertEqual(daemon.asked, CREATE)
        self.assertEqual(daemon.body['plan'], dict((k, v) for k, v in ASKED.items() if v is not None))
        self.assertEqual(daemon.body['copy'], dict(compress=False))
        self.assertEqual((got['changed'], got['operation'], got['migration'], got['migration_plan']), (True, 'O1', THERE, PLAN))
        daemon = Fake(None)
        check = self.play(daemon, check=True, plan=ASKED)
        self.assertEqual(daemon.asked, CREATE[:4])
        self.assertEqual((check['changed'], check['diff'], check['migration_plan']), (True, got['diff'], PLAN))

    def test_the_same_again_sends_nothing(self):
        for wish in (dict(), dict(plan=ASKED), dict(plan=ASKED, copy=dict(connections=2, compress=None)), dict(copy={})):
            for state in ('present', 'ready'):
                daemon = Fake(READY)
                got = self.play(daemon, state=state, **wish)
                self.assertEqual((got['changed'], daemon.asked), (False, ['GET migrations']))
                self.assertEqual(got['diff']['before'], got['diff']['after'])

    def test_another_plan_is_refused(self):
        for wish, fields in (
            (dict(assessment='t'), {'assessment'}),
            (dict(plan={}), {'plan.licence_token', 'plan.threads', 'plan.downtime_seconds', 'plan.waivers'}),
            (dict(plan=dict(ASKED, disks=['b', 'a'], partitions=[dict(profile='x', gpu=None)])), {'plan.disks', 'plan.partitions'}),
            (dict(plan=dict(ASKED, waivers=[dict(id='x', reason='z')])), {'plan.waivers'}),
        ):
            daemon = Fake(THERE)
            self.assertEqual(set(self.refused(daemon, 'conflict', copy=dict(connections=9), **wish).differences), fields)
            self.assertEqual(daemon.asked, ['GET migrations'])

    def test_what_is_left_out_of_a_partition_is_nothing(self):
        stored = dict(THERE, plan=dict(WISH, disks=['a', 'b'], partitions=[dict(source='0', memory_bytes=0, sms=0)]))
        got = self.play(Fake(stored), plan=dict(ASKED, disks=['b', 'a'], partitions=[dict({'source': '0', 'gpu': None, 'none': False})]))
        self.assertFalse(got['changed'])

    def test_it_is_copied_otherwise(self):
        after = dict(THERE, copy=dict(COPY, connections=9))
        daemon = Fake(THERE, after)
        got = self.play(daemon, copy=dict(connections=9, compress=None))
        self.assertEqual(daemon.asked, ['GET migrations', 'plan PATCH /v1/migrations/a', 'PATCH /v1/migrations/a', 'GET migrations'])
        self.assertEqual((got['changed'], got['migration'], daemon.body), (True, after, dict(copy=dict(connections=9))))
        daemon = Fake(THERE)
        check = self.play(daemon, check=True, copy=dict(connections=9))
        self.assertEqual(daemon.asked, ['GET migrations', 'plan PATCH /v1/migrations/a'])
        self.assertEqual((check['changed'], check['diff'], check['migration']), (True, got['diff'], after))

    def test_what_the_daemon_would_refuse(self):
        for check in (True, False):
            for more, code, blockers in (
                (dict(planned=BLOCKED), 'conflict', [dict(kind='concern', id='disk-room', name='No room')]),
                (dict(seen=dict(SEEN, state='watching')), 'conflict', [dict(kind='operation', id='O0')]),
                (dict(seen=dict(name='s', state='done')), 'conflict', []),
                (dict(others=[dict(READY, name='b')]), 'busy', []),
            ):
                daemon = Fake(None, **more)
                self.assertEqual(self.refused(daemon, code, check=check).blockers, blockers)
                self.assertNotIn('POST /v1/migrations', daemon.asked)
                self.assertIn('migration_plan', self.run.result)
                self.assertFalse(self.run.result['changed'])
        self.assertTrue(self.play(Fake(None, THERE, others=[dict(READY, name='b', phase='rolled-back')]))['changed'])

    def test_the_plan_alone(self):
        for there in (None, THERE):
            daemon = Fake(there, planned=BLOCKED)
            got = self.play(daemon, plan_only=True)
            self.assertEqual(daemon.asked, ['plan POST /v1/migrations'])
            self.assertEqual(got, dict(changed=False, migration_plan=BLOCKED))

    def test_a_request_that_came_twice(self):
        got = self.play(Fake(None, THERE, raced=True), plan=ASKED)
        self.assertEqual((got['changed'], got['operation']), (True, 'O1'))
        self.refused(Fake(None, dict(THERE, assessment='t'), raced=True), 'conflict')
        self.assertFalse(self.run.result['changed'])
        self.refused(Fake(None, raced=True), 'conflict')

    def test_ready_is_waited_for(self):
        daemon = Fake(None, THERE, THERE, READY)
        got = self.play(daemon, state='ready')
        self.assertEqual((got['changed'], got['migration']), (True, READY))
        for more in (dict(wait=False), dict(check=True)):
            self.assertEqual(self.play(Fake(THERE), state='ready', **more)['migration'], THERE)
        p = self.refused(Fake(dict(THERE, forecast=dict(final_seconds=900, budget_seconds=600, converges=False)), seconds=2), 'timeout', state='ready')
        self.assertIn('900 of 600 seconds, and does not get shorter', p.detail)  # of a daemon that does not tell the parts
        parts = dict(final_seconds=9, rest_seconds=309, downtime_seconds=709, budget_seconds=600, fits=False, converges=True)
        p = self.refused(Fake(dict(THERE, forecast=parts), seconds=2), 'timeout', state='ready')
        self.assertIn('the last pass would take 9 seconds, and the downtime would be 709 of 600 seconds', p.detail)
        self.assertIn('first pass', self.refused(Fake(THERE, seconds=2), 'timeout', state='ready').detail)
        p = self.refused(Fake(THERE, dict(THERE, phase='waiting', reason='no room')), 'waiting', state='ready')
        self.assertEqual((p.operation, 'no room' in p.detail), ('O1', True))
        self.refused(Fake(THERE, dict(THERE, phase='rolling-back')), 'conflict', state='ready')
        self.refused(Fake(THERE, None), 'not-found', state='ready')

    def test_one_that_stands_still_is_warned_of(self):
        self.play(Fake(dict(THERE, phase='waiting', reason='no room')))
        self.assertEqual(self.run.ansible.warnings, ['migration "a" waits for a person: no room'])

    def test_its_keys(self):
        keys = [dict(volume='sda3', credential=None, passphrase='swordfish'), dict(volume='sdb', credential='luks', passphrase=None)]
        daemon = Fake(None, THERE)
        self.play(daemon, keys=keys)
        sent = [dict(volume='sda3', passphrase='swordfish'), dict(volume='sdb', credential='luks')]
        self.assertEqual(daemon.body['keys'], sent)
        held = dict(THERE, keys=[dict(volume='sda3', wanted=False), dict(volume='sdb', credential='luks', wanted=False)])
        daemon = Fake(held)
        self.assertEqual((self.play(daemon, keys=keys)['changed'], daemon.asked), (False, ['GET migrations']))
        for lost, again in (
            (dict(held, keys=[dict(volume='sda3', wanted=True), held['keys'][1]]), sent[:1]),
            (dict(held, keys=[held['keys'][0], dict(volume='sdb', credential='other', wanted=False)]), sent[1:]),
            (dict(held, keys=[held['keys'][1]]), sent[:1]),
            (THERE, sent),
        ):
            daemon = Fake(lost, held)
            got = self.play(daemon, keys=keys)
            self.assertEqual((got['changed'], got['migration'], daemon.body), (True, held, dict(keys=again)))
            self.assertTrue(self.play(Fake(lost), check=True, keys=keys)['changed'])

    def test_its_lease(self):
        def leased(state, seconds):
            return dict(THERE, reservation=dict(state=state, lease_seconds=seconds), reserved_until='2026-12-24T12:00:00Z')
        daemon = Fake(None, THERE)
        self.play(daemon, lease_seconds=0)
        self.assertEqual(daemon.body['lease_seconds'], 0)
        daemon = Fake(leased('reserved', 86400))
        self.assertEqual((self.play(daemon, lease_seconds=86400)['changed'], daemon.asked), (False, ['GET migrations']))
        daemon, after = Fake(leased('ending', 86400), leased('reserved', 0)), leased('reserved', 0)
        got = self.play(daemon, lease_seconds=0)
        self.assertEqual(daemon.asked, ['GET migrations', 'plan POST /v1/migrations/a/reserve', 'POST /v1/migrations/a/reserve', 'GET migrations'])
        self.assertEqual((got['changed'], got['migration'], daemon.body, self.run.ansible.warnings), (True, after, dict(lease_seconds=0), []))
        check = self.play(Fake(leased('ending', 86400)), check=True, lease_seconds=0)
        self.assertEqual((check['changed'], check['diff']), (True, got['diff']))
        self.assertNotEqual(got['diff']['before'], got['diff']['after'])
        for state, says in (('ending', 'until 2026-12-24T12:00:00Z'), ('released', 'were given back'), ('reserved', None)):
            self.assertFalse(self.play(Fake(leased(state, 86400)))['changed'])
            self.assertEqual([says in w for w in self.run.ansible.warnings], [True] if says else [])

    def test_one_that_was_taken_back_does_not_come_again(self):
        for phase in moves.BACK:
            daemon = Fake(dict(THERE, phase=phase))
            self.assertIn('absent', self.refused(daemon, 'conflict').hint)
            self.assertEqual(daemon.asked, ['GET migrations'])

    def test_it_is_rehearsed(self):
        asked, running, passed = (tried(READY, 'rehearsal ' + state) for state in ('asked', 'running', 'passed'))
        daemon = Fake(THERE, READY, asked, dict(running, phase='rehearsing'), passed)
        got = self.play(daemon, state='rehearsed', stop_services=['a.service'], limit_seconds=9, verify=True)
        self.assertEqual(daemon.asked, ['GET migrations', 'GET migrations', 'plan POST /v1/migrations/a/rehearse', 'POST /v1/migrations/a/rehearse'] +
                         3 * ['GET migrations'])
        self.assertEqual(daemon.body, dict(stop_services=['a.service'], limit_seconds=9, verify=True))
        self.assertEqual((got['changed'], got['migration'], got['diff']['after']['state']), (True, passed, 'rehearsed'))
        check = self.play(Fake(THERE), check=True, state='rehearsed')
        self.assertEqual((check['changed'], check['diff'], check['plan']['changes']), (True, got['diff'], True))
        daemon = Fake(READY)
        self.play(daemon, check=True, state='rehearsed')
        self.assertEqual(daemon.asked, ['GET migrations', 'plan POST /v1/migrations/a/rehearse'])

    def test_what_has_passed_is_not_tried_again(self):
        for there in (tried(READY, 'rehearsal failed x', 'rehearsal passed'), tried(DONE, 'cutover passed'), DONE):
            for state in ('rehearsed', 'done')[:1 if there['phase'] == 'ready' else 2]:
                for check in (True, False):
                    daemon = Fake(there)
                    got = self.play(daemon, check=check, state=state)
                    self.assertEqual((got['changed'], daemon.asked), (False, ['GET migrations']))

    def test_what_has_failed_since_is_rehearsed_again(self):
        for there in (tried(READY, 'rehearsal passed', 'rehearsal failed x'), tried(READY, 'rehearsal passed', 'cutover failed x')):
            daemon = Fake(there, tried(READY, 'rehearsal passed'))
            self.assertTrue(self.play(daemon, state='rehearsed')['changed'])
            self.assertIn('POST /v1/migrations/a/rehearse', daemon.asked)

    def test_one_that_is_tried_is_waited_for(self):
        for running, end, changed in (
            ('rehearsal running', tried(READY, 'rehearsal passed'), False),
            ('rehearsal running', tried(READY, 'rehearsal failed x'), True),
            ('cutover running', tried(DONE, 'cutover passed'), False),
        ):
            there = tried(READY, running)
            daemon = Fake(there, there, end, tried(READY, 'rehearsal passed'))
            self.assertEqual(self.play(daemon, state='rehearsed')['changed'], changed)
            for more in (dict(check=True), dict(wait=False)):
                daemon = Fake(there)
                self.assertFalse(self.play(daemon, state='rehearsed', **more)['changed'])
                self.assertEqual(daemon.asked, ['GET migrations'])
        p = self.refused(Fake(tried(READY, 'rehearsal running', phase='rehearsing'), seconds=2), 'timeout', state='rehearsed')
        self.assertIn('it is rehearsing', p.detail)

    def test_it_is_cut_over(self):
        ready = tried(READY, 'rehearsal passed')
        going = tried(READY, 'rehearsal passed', 'cutover running')
        after = tried(DONE, 'rehearsal passed', 'cutover passed')
        for there in (ready, tried(READY, 'rehearsal passed', 'cutover failed x')):
            daemon = Fake(there, dict(going, phase='cutting-over'), tried(READY, 'rehearsal passed', 'cutover moved', phase='verifying'), after)
            got = self.play(daemon, state='done', live=False)
            self.assertEqual(daemon.asked[1:3], ['plan POST /v1/migrations/a/cutover', 'POST /v1/migrations/a/cutover'])
            self.assertEqual((got['changed'], got['migration'], daemon.body), (True, after, {}))
        check = self.play(Fake(ready), check=True, state='done')
        self.assertEqual((check['changed'], check['diff']), (True, dict(got['diff'], before=check['diff']['before'])))
        daemon = Fake(READY, after)
        self.assertTrue(self.play(daemon, state='done', unrehearsed='x')['changed'])
        self.assertEqual(daemon.body, dict(unrehearsed='x'))

    def test_nothing_is_begun_that_would_not_be_cut_over(self):
        for there in (None, READY, tried(READY, 'rehearsal passed', 'rehearsal failed x')):
            for check in (True, False):
                daemon = Fake(there)
                p = self.refused(daemon, 'conflict', check=check, state='done')
                self.assertIn('rehears', p.detail)
                self.assertEqual(daemon.asked, ['GET migrations'])
        self.refused(Fake(None), 'not-found', state='rehearsed', assessment=None)

    def test_what_fits_no_downtime_is_waited_for_unless_more_is_allowed(self):
        big = dict(THERE, forecast=dict(FORECAST, final_seconds=900, fits=False))
        for more, wait in ((dict(), True), (dict(limit_seconds=800), True), (dict(limit_seconds=900), False), (dict(live=True), False)):
            daemon = Fake(big, seconds=3)
            code = 'timeout' if wait else 'conflict'
            self.refused(daemon, code, state='rehearsed', **more) if wait else self.play(Fake(big, tried(big, 'rehearsal passed')), state='rehearsed', **more)

    def test_the_conversion_and_the_boot_are_waited_for_where_that_helps(self):
        def there(final, fits=False):
            parts = dict(final_seconds=final, rest_seconds=final + 300, downtime_seconds=final + 500, budget_seconds=600, fits=fits, converges=True)
            return tried(THERE, 'rehearsal passed', forecast=parts)

        for final, more, waits in (
            (90, dict(), False),
            (110, dict(), True),  # the last pass gets shorter
            (110, dict(limit_seconds=610), False),
            (110, dict(limit_seconds=500), True),
            (10, dict(limit_seconds=60), False),  # the conversion does not, and the daemon says so
        ):
            m = there(final, fits=final <= 100)
            if waits:
                self.refused(Fake(m, seconds=3), 'timeout', state='done', **more)
            else:
                self.assertTrue(self.play(Fake(m, DONE), state='done', **more)['changed'])
        # A rehearsal measures them, and its server is at rest for the last pass alone.
        m = dict(there(10), attempts=[])
        self.assertTrue(self.play(Fake(m, tried(m, 'rehearsal passed')), state='rehearsed', limit_seconds=60)['changed'])
        m = dict(there(10000, fits=True), attempts=[], disks_from=[dict(disk='sda', image='/srv/x')])
        self.assertTrue(self.play(Fake(m, tried(m, 'rehearsal passed')), state='rehearsed')['changed'])

    def test_one_that_fails_is_told(self):
        p = self.refused(Fake(READY, tried(READY, 'rehearsal failed it is ill')), 'conflict', state='rehearsed')
        self.assertIn('the rehearsal of migration "a" has failed, and the server goes on: it is ill', p.detail)
        self.assertEqual((self.run.result['changed'], self.run.result['migration']['attempts'][0]['problem']), (True, 'it is ill'))
        ready = tried(READY, 'rehearsal passed')
        p = self.refused(Fake(ready, tried(READY, 'rehearsal passed', 'cutover failed too slow')), 'conflict', state='done')
        self.assertIn('too slow', p.detail)
        for fence, hint in (('asked', 'migrate fenced a'), ('off', 'state rolled-back'), ('', 'migrate retry a')):
            stuck = tried(READY, 'rehearsal passed', 'cutover moved', phase='waiting', reason='who knows', fence=fence)
            for there in ((ready, stuck), (stuck,)):
                p = self.refused(Fake(*there), 'waiting', state='done')
                self.assertEqual(('who knows' in p.detail, hint in p.hint), (True, True))
            self.refused(Fake(stuck), 'waiting', check=True, state='done')

    def test_an_attempt_that_came_twice(self):
        daemon = Fake(READY, tried(READY, 'rehearsal asked'), tried(READY, 'rehearsal passed'), refused=True)
        self.assertTrue(self.play(daemon, state='rehearsed')['changed'])
        self.refused(Fake(READY, tried(READY, 'rehearsal failed x'), refused=True), 'conflict', state='rehearsed')
        self.assertFalse(self.run.result['changed'])

    def test_another_vm_is_refused(self):
        wanted = dict(name='', nics=[dict(mac='AA:bb', network='n')], convert='none', checks=[dict(name='c', command=['x'])])
        there = dict(THERE, wanted=wanted)
        same = dict(convert='none', nics=[dict(mac='aa:BB', network='n', bridge=None)], checks=[dict(name='c', command=['x'], seconds=None)])
        self.assertFalse(self.play(Fake(there), vm=same)['changed'])
        p = self.refused(Fake(there), 'conflict', vm=dict(name='b', convert='none', checks=[dict(name='c', command=['y'])]))
        self.assertEqual(set(p.differences), {'vm.name', 'vm.nics', 'vm.checks'})
        daemon = Fake(None, there)
        self.play(daemon, vm=same)
        self.assertEqual(daemon.body['vm'], migration.said(same))

    def test_one_that_was_withdrawn_is_told_and_asked_for_again(self):
        ready, gone = tried(READY, 'rehearsal passed'), tried(READY, 'rehearsal passed', 'cutover withdrawn alice does not want it')
        p = self.refused(Fake(ready, tried(READY, 'rehearsal passed', 'cutover asked'), gone), 'conflict', state='done')
        self.assertIn('has been withdrawn, and the server goes on: alice', p.detail)
        self.assertTrue(self.play(Fake(gone, DONE), state='done')['changed'])

    def test_the_daemon_waits_until_it_is_ready(self):
        daemon = Fake(tried(THERE, 'rehearsal passed'), tried(THERE, 'rehearsal passed', 'cutover asked'))
        self.assertTrue(self.play(daemon, state='done', wait=False, when_ready=True)['changed'])
        self.assertEqual(daemon.body, dict(when_ready=True))

    def test_one_that_is_off(self):
        disks = [dict(disk='a', image='/i', nbd=None)]
        there = dict(READY, disks_from=[dict(disk='a', image='/i')])
        daemon = Fake(None, there, seen=dict(name='s', state='done'))
        got = self.play(daemon, disks_from=disks)
        self.assertEqual((got['changed'], daemon.body['disks_from'], got['diff']['after']['disks_from']), (
            True, [dict(disk='a', image='/i')], [dict(disk='a', image='/i', nbd='')]))
        check = self.play(Fake(None, seen=dict(name='s', state='done')), check=True, disks_from=disks)
        self.assertEqual(check['diff'], got['diff'])
        self.assertFalse(self.play(Fake(there), disks_from=disks)['changed'])
        p = self.refused(Fake(there), 'conflict', disks_from=[dict(disk='a', image='/j', nbd=None)], certificates='c')
        self.assertEqual(set(p.differences), {'disks_from', 'certificates'})
        for check in (True, False):
            self.assertIn('nobody has said that it is off', self.refused(Fake(there), 'conflict', check=check, state='done', unrehearsed='x').detail)
        self.assertTrue(self.play(Fake(there, DONE), state='done', unrehearsed='x', source_off=True)['changed'])

    def test_rolled_back(self):
        back = dict(THERE, phase='rolled-back')
        ask = ['plan POST /v1/migrations/a/rollback', 'POST /v1/migrations/a/rollback', 'wait O1', 'GET migrations']
        for there, check, asked in ((THERE, True, ask[:1]), (THERE, False, ask), (back, True, []), (back, False, [])):
            daemon = Fake(there, back)
            got = self.play(daemon, check=check, state='rolled-back')
            self.assertEqual(daemon.asked, ['GET migrations'] + asked)
            self.assertEqual((got['changed'], got['migration']['phase'], got['diff']['after']['state']), (there is not back, 'rolled-back', 'rolled-back'))
            self.assertEqual(self.run.ansible.warnings, [])
        self.play(Fake(dict(THERE, phase='waiting', fence='off'), back), state='rolled-back')
        self.assertIn('start it again', self.run.ansible.warnings[0])
        self.refused(Fake(None), 'not-found', state='rolled-back')

    def test_absent(self):
        back, rollback, delete = dict(THERE, phase='rolled-back'), '{0}POST /v1/migrations/a/rollback', '{0}DELETE /v1/migrations/a'
        for there, check, asked in (
            (None, False, []),
            (THERE, True, [rollback.format('plan ')]),
            (THERE, False, [rollback.format('plan '), rollback.format(''), 'wait O1', delete.format('')]),
            (back, True, [delete.format('plan ')]),
            (back, False, [delete.format('plan '), delete.format('')]),
            (DONE, True, [delete.format('plan ')]),
            (DONE, False, [delete.format('plan '), delete.format('')]),
        ):
            for wait in (True, False):
                daemon = Fake(there)
                got = self.play(daemon, check=check, wait=wait, state='absent')
                self.assertEqual(daemon.asked, ['GET migrations'] + asked)
                self.assertEqual((got['changed'], got['diff']['after'], got.get('migration')), (there is not None, {}, there))

    def test_taking_back_that_fails(self):
        daemon = Fake(THERE, end='failed')
        self.refused(daemon, 'internal', state='absent')
        self.assertTrue(self.run.result['changed'])
        self.assertNotIn('DELETE /v1/migrations/a', daemon.asked)
        for check in (True, False):
            daemon = Fake(dict(THERE, phase='failed', reason='foreign files'))
            self.assertIn('foreign files', self.refused(daemon, 'conflict', check=check, state='absent').detail)
            self.assertEqual(daemon.asked, ['GET migrations'])


if __name__ == '__main__':
    unittest.main()
