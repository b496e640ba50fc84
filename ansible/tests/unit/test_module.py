# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""What a module does about others that are at work, without a daemon."""

import unittest

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import client as c

try:
    from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import module as m
    from ansible_collections.gpuvirt.gpuvirt.plugins.modules import mig
except ImportError:  # there is no Ansible beside this interpreter
    m = None


class Fake(object):
    """A client whose plans and waits give what they are given."""

    def __init__(self, plans, waits):
        self.plans, self.waits, self.written = plans, waits, []

    def plan(self, request):
        plan = self.plans.pop(0)
        if isinstance(plan, c.Problem):
            raise plan
        return plan

    def write(self, request):
        self.written.append(request)
        return None, dict(id='mine')

    def wait(self, operation):
        return dict(self.waits.pop(0), id=operation)


class Ansible(object):
    check_mode = False

    def __init__(self, **params):
        self.params = dict(dict((n, None) for n in m.NETWORK), socket='/nowhere', wait=True, timeout=5)
        self.params.update(params)


BUSY = c.Problem('busy', 'another holds it', status=423, operation='theirs')
YES = dict(changes=True)


@unittest.skipIf(m is None, 'there is no Ansible beside this interpreter')
class TestRun(unittest.TestCase):

    def run_with(self, plans, waits, **params):
        r = m.Run(Ansible(**params))
        r.client = Fake(plans, waits)
        return r

    def test_one_at_work_is_waited_for(self):
        r = self.run_with([BUSY, BUSY, YES], [dict(status='done'), dict(status='undone'), dict(status='done')])
        self.assertTrue(r.carry_out('request'))
        self.assertEqual((r.client.written, r.result['operation']), (['request'], 'mine'))

    def test_but_not_one_that_a_person_must_see_to(self):
        for status in ('waiting', 'failed'):
            r = self.run_with([BUSY, YES], [dict(status=status)])
            self.assertRaises(c.Problem, r.carry_out, 'request')
            self.assertEqual(r.client.written, [])

    def test_nor_where_waiting_is_not_wanted(self):
        r = self.run_with([BUSY, YES], [], wait=False)
        self.assertRaises(c.Problem, r.carry_out, 'request')

    def test_between_several_it_waits_nevertheless(self):
        r = self.run_with([YES, YES], [dict(status='done')], wait=False)
        r.carry_out('one', more=True)
        r.carry_out('two')
        self.assertEqual((r.client.written, r.client.waits), (['one', 'two'], []))

    def test_our_own_is_not_done_again(self):
        r = self.run_with([YES, YES], [dict(status='undone', summary='x', problem=dict(code='busy', detail='y', operation='z'))])
        self.assertRaises(c.Problem, r.carry_out, 'request')
        self.assertEqual(len(r.client.written), 1)

    def test_a_layout_that_is_there(self):
        def there(profile, placement, *compute):
            return dict(profile=profile, placement=placement, compute=list(compute or [profile]))

        instances = [there('1g', 0), there('1g', 1), there('3g', 4, '2c', '1c')]
        now = dict(equal=True, wanted=dict(enabled=True, instances=instances), actual=dict(enabled=True, instances=instances))
        for want, same in (
            ([dict(profile='3g', compute=['1c', '2c']), dict(profile='1g'), dict(profile='1g', placement=0)], True),
            ([dict(profile='3g', compute=['1c', '2c']), dict(profile='1g'), dict(profile='1g', placement=2)], False),
            ([dict(profile='3g'), dict(profile='1g'), dict(profile='1g')], False),
            ([dict(profile='3g', compute=['1c', '2c']), dict(profile='1g')], False),
            ([], False),
        ):
            self.assertEqual(mig.is_there(dict(enabled=True, instances=want), now), same, want)
        self.assertFalse(mig.is_there(dict(enabled=False, instances=[]), now))
        self.assertFalse(mig.is_there(dict(enabled=True, instances=[]), dict(equal=True)))
        self.assertFalse(mig.is_there(now['wanted'], dict(now, equal=False)))
        foreign = dict(enabled=True, instances=instances + [there('1g', 2)])
        self.assertFalse(mig.is_there(now['wanted'], dict(now, actual=foreign)))


if __name__ == '__main__':
    unittest.main()
