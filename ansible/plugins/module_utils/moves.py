# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""How far a migration is, waiting until it has come further, and what is tried of it."""

import time

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import Problem, Request

# Phases of one that was taken back, and does not come again.
BACK = ('rolling-back', 'rolled-back', 'failed')

# States of an attempt of which nothing more comes.
ENDED = ('moved', 'passed', 'failed', 'withdrawn', 'taken-back')

# Those of a cut-over whose server is off.
MOVED = ('moved', 'passed')

# Phases in which the disks are copied, or are about to be, and something can be tried.
COPIED = ('reserved', 'syncing', 'ready')

# Seconds between two looks at one that is waited for.
PAUSE = 2

# Of a state that is asked for, what is tried for it, the route, and how it is called.
TRIES = dict(
    rehearsed=('rehearsal', 'rehearse', 'rehearse'),
    done=('cutover', 'cutover', 'cut over'),
)


def newest(m):
    """What was tried last of one, None: nothing yet."""
    attempts = m.get('attempts') or []
    return attempts[-1] if attempts else None


def is_over(attempt):
    return attempt is None or attempt['state'] in ENDED


def standing(m):
    """Which of the states that can be asked for one has."""
    last = newest(m)
    if m['phase'] in ('done', 'rolled-back'):
        return m['phase']
    if last and (last['kind'], last['state']) == ('rehearsal', 'passed'):
        return 'rehearsed'
    return 'present'


def reached(m, state):
    """Whether one has a state, or one that comes after it."""
    order = ('present', 'rehearsed', 'done')
    now = standing(m)
    return now == state or now in order and state in order and order.index(now) >= order.index(state)


def there(r, name):
    """The migration. The daemon may be starting anew meanwhile."""
    try:
        return r.client.send(Request('GET', 'migrations', name), patient=True)[1]
    except Problem as p:
        if p.is_gone():
            raise Problem('not-found', 'migration "{0}" was there and is not any more: somebody else has deleted it'.format(name))
        raise


def check_not_back(m):
    """Refuse one that was taken back."""
    if m['phase'] in BACK:
        raise Problem(
            'conflict', 'migration "{0}" is {1}{2}'.format(m['name'], m['phase'], ': ' + m['reason'] if m.get('reason') else ''), status=409,
            operation=m['operation'], hint='forget it, with state absent, before it is begun anew')


def check_goes_on(m):
    """Refuse to wait for one that comes no further by itself."""
    check_not_back(m)
    if m['phase'] != 'waiting':
        return
    hint = 'then it goes on: gpuvirt migrate retry ' + m['name']
    if m.get('fence') == 'asked':
        hint = 'look at the server: if it is off, gpuvirt migrate fenced {0}; if it runs, gpuvirt migrate retry {0}'.format(m['name'])
    elif m.get('fence') == 'off':
        hint = 'gpuvirt migrate retry {0} when it is mended, or accept {0} as it is; or take it back, with state rolled-back, and start the server'.format(
            m['name'])
    raise Problem(
        'waiting', 'migration "{0}" waits for a person: {1}'.format(m['name'], m.get('reason')), operation=m['operation'], hint=hint)


def forecast(m):
    f = m.get('forecast')
    if not f:
        return 'the first pass has not ended'
    text = 'the last pass would take {0:.0f} seconds, and the downtime would be {1:.0f} of {2:.0f} seconds'.format(
        f['final_seconds'], f.get('downtime_seconds', f['final_seconds']), f['budget_seconds'])
    return text if f['converges'] else text + ', and does not get shorter'


def until(r, m, come, late, hint):
    """Wait until one has come to something, and return it. late says what it is not yet."""
    while True:
        r.result['migration'] = m
        if come(m):
            return m
        check_goes_on(m)
        if r.client.left() <= 0:
            raise Problem(
                'timeout', 'migration "{0}" {1} within {2} seconds, and goes on: {3}'.format(
                    m['name'], late, r.params['timeout'], forecast(m) if m['phase'] in COPIED else 'it is ' + m['phase']),
                operation=m['operation'], hint=hint)
        time.sleep(min(PAUSE, max(0, r.client.left())))
        m = there(r, m['name'])


def until_ready(r, m):
    """Wait until a cut-over would fit the downtime, and return it."""
    return until(
        r, m, lambda m: m['phase'] in ('ready', 'done'), 'is not ready', 'ask for more with timeout, let it have more bandwidth, or rehearse it, which measures what a cut-over takes')


def is_at_work(m):
    """Whether something is tried now, or was asked to be."""
    return not is_over(newest(m)) or m['phase'] in ('rehearsing', 'cutting-over', 'verifying')


def fits(f, limit, less=0):
    """Whether a cut-over would take no longer than it may, were its last pass so many seconds less."""
    rest = f.get('rest_seconds', f['final_seconds'])
    down = f.get('downtime_seconds', rest) - less <= max(limit, f['budget_seconds'])
    return (f['fits'] or down) and (not limit or rest - less <= limit)


def can_try(m, state, wish):
    """Whether what is tried for a state would take no longer than it may, or waiting does not help."""
    f = m.get('forecast')
    if m['phase'] in COPIED and wish.get('when_ready'):
        return True  # the daemon waits
    if m['phase'] not in COPIED or not f:
        return False
    limit = wish.get('limit_seconds', 0)
    if state == 'rehearsed':
        # The server is at rest for the last pass alone. What the others take is measured by it.
        return bool(wish.get('live') or m.get('disks_from')) or f['final_seconds'] <= (limit or f['budget_seconds'])
    # Where more passes do not help, the daemon refuses it, and says what does.
    return fits(f, limit) or not fits(f, limit, f['final_seconds'])


def check_rehearsed(m, name, wish):
    """Refuse a cut-over that the daemon would refuse once all is copied."""
    if m is not None and m.get('disks_from') and not wish.get('source_off'):
        raise Problem(
            'conflict', 'cannot cut over migration "{0}": its disks are read without the server, and nobody has said that it is off'.format(name),
            status=409, hint='look at it, and say so with source_off: two machines with one address are worse than none')
    if wish.get('unrehearsed'):
        return
    rehearsals = [a for a in (m or {}).get('attempts') or [] if a['kind'] == 'rehearsal' and is_over(a)]
    if not rehearsals:
        raise Problem(
            'conflict', 'cannot cut over migration "{0}": it was not rehearsed'.format(name), status=409,
            hint='have it rehearsed before, with state rehearsed, or say with unrehearsed why it need not be')
    if rehearsals[-1]['state'] != 'passed':
        raise Problem(
            'conflict', 'cannot cut over migration "{0}": the last rehearsal has failed: {1}'.format(name, rehearsals[-1].get('problem')), status=409,
            hint='rehearse it again, with state rehearsed, or say with unrehearsed why it need not be')


def became(m, state):
    """What a check knows of one that would come to a state."""
    if state == 'done':
        return dict(m, phase='done')
    return dict(m, attempts=(m.get('attempts') or []) + [dict(kind='rehearsal', state='passed')])


def settled(r, m, kind):
    """Wait for what is tried, and return the migration. One that failed is a Problem."""
    def come(m):
        last = newest(m)
        if m['phase'] == 'done' or last is None:
            return True
        # Of a cut-over whose server is off, the VM is still to start, and to be looked at.
        return is_over(last) and (last['kind'] == 'rehearsal' or last['state'] not in MOVED)

    m = until(r, m, come, 'has not been ' + dict(rehearsal='rehearsed', cutover='cut over')[kind], 'play it again, which waits for it')
    last = newest(m)
    if m['phase'] != 'done' and last and last['kind'] == kind and last['state'] not in MOVED:
        raise Problem(
            'conflict', 'the {0} of migration "{1}" has {2}, and the server goes on: {3}'.format(
                kind, m['name'], dict(failed='failed', withdrawn='been withdrawn').get(last['state'], 'ended'), last.get('problem')),
            status=409, operation=m['operation'], hint='the attempt says what was found; play it again when it is mended')
    return m


def bring(r, m, state, wish):
    """Have one rehearsed, or cut over, where that is not so; return the migration."""
    kind, route, verb = TRIES[state]
    name = m['name']
    check_goes_on(m)
    if is_at_work(m):
        if r.check or not r.params['wait']:
            return m  # what comes of it is not known
        # Also where another kind is tried: a rehearsal does not matter to a cut-over.
        m = until(r, m, lambda m: not is_at_work(m), 'is still at work', 'play it again, which waits for it')
    if reached(m, state):
        return m
    if state == 'done':
        check_rehearsed(m, name, wish)
    request = Request('POST', 'migrations', name, route, body=wish)
    if r.check:
        # Before it is ready the daemon would refuse what is waited for.
        r.result['plan'] = r.plan(request) if can_try(m, state, wish) else dict(summary='{0} {1} when it is ready'.format(verb, name), steps=[], changes=True)
        r.result['changed'] = True
        return became(m, state)
    if r.params['wait']:
        m = until(r, m, lambda m: can_try(m, state, wish), 'is not ready', 'ask for more with timeout, or let it have more bandwidth')
    try:
        r.carry_out(request)
    except Problem as p:
        # A request whose answer did not come is sent again, and meets itself.
        m = there(r, name)
        if p.code != 'conflict' or is_over(newest(m)) or newest(m)['kind'] != kind:
            raise
    r.result['changed'] = True
    m = there(r, name)
    return settled(r, m, kind) if r.params['wait'] else m
