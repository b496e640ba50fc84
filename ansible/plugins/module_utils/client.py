# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""A client of gpuvirtd, of the standard library alone: it runs on the managed host.

What the daemon refuses, and what fails on the way, is a Problem.
"""

import http.client
import json
import os
import socket
import ssl
import time
import urllib.parse
import uuid

SOCKET = '/run/gpuvirt/gpuvirtd.sock'

# Seconds for one answer. Only a wait for an operation takes longer.
ANSWER = 60
# Seconds that a daemon which was there a moment ago may take to come back.
PATIENCE = 20
# Bytes of one answer.
MAX_BODY = 64 << 20

# Statuses in which an operation goes no further by itself.
RESTING = ('waiting', 'done', 'undone', 'failed')


class Problem(Exception):
    """Why something was refused or failed, with what the daemon says about it.

    Beside the codes of the API there are two: "unreachable", the daemon gave no
    answer, and "timeout", the operation has not ended in time and goes on.
    """

    def __init__(self, code, detail, status=None, hint='', blockers=(), operation='', step='', differences=None):
        super(Problem, self).__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.hint = hint
        self.blockers = list(blockers)
        self.operation = operation
        self.step = step
        self.differences = differences or {}

    @classmethod
    def of(cls, doc, operation=''):
        """Read a problem document of RFC 9457."""
        return cls(
            code=doc.get('code') or 'internal', detail=doc.get('detail') or doc.get('title') or 'no reason is given',
            status=doc.get('status'), hint=doc.get('hint') or '', blockers=doc.get('blockers') or (),
            operation=operation or doc.get('operation') or '', step=doc.get('step') or '', differences=doc.get('diff'))

    @classmethod
    def of_operation(cls, op):
        """Why an operation that goes no further did not do what it should."""
        doc = op.get('problem') or {}
        p = cls.of(doc, operation=op['id'])
        if op['status'] == 'waiting':
            p.code = doc.get('code') or 'waiting'
            p.detail = 'operation {0} waits for a person: {1}'.format(op['id'], op.get('reason') or p.detail)
            p.hint = p.hint or 'then it goes on: gpuvirt operation retry ' + op['id']
            return p
        if not doc and op.get('abort'):
            p.code, p.detail = 'aborted', 'somebody aborted it'
        if op['status'] == 'failed':
            p.detail = 'cannot {0}: {1}; undoing it failed, and what it needs is held'.format(op['summary'], p.detail)
            p.hint = p.hint or 'gpuvirt operation retry {0}, or forget'.format(op['id'])
        else:
            p.detail = 'cannot {0}: {1}; what was done of it is undone'.format(op['summary'], p.detail)
        return p

    def is_gone(self):
        """What the request named is not there, and not: something that an operation needed."""
        return self.status == 404 and self.code in ('not-found', 'vm-not-found') and not self.operation

    def message(self):
        """All of it in one line, for people."""
        parts = [self.detail]
        for name in sorted(self.differences):
            d = self.differences[name]
            parts.append('{0} is "{1}", asked for "{2}"'.format(name, d.get('stored', ''), d.get('asked', '')))
        more = [_blocker(b) for b in self.blockers if b.get('id', '') not in self.detail or b.get('note', '') not in self.detail]
        if more:
            parts.append('in the way: ' + ', '.join(more))
        if self.operation and self.operation not in ' '.join(parts):
            parts.append('operation: ' + self.operation)
        if self.hint:
            parts.append('hint: ' + self.hint)
        return '{0} ({1})'.format('; '.join(parts), self.code)

    def fields(self):
        """All of it one by one, for programs."""
        return dict(
            code=self.code, status=self.status, detail=self.detail, hint=self.hint, blockers=self.blockers,
            operation=self.operation, step=self.step, differences=self.differences)


class Unreachable(Problem):
    """No answer came. Where sent is false the daemon did not get the request."""

    def __init__(self, detail, sent, hint=''):
        super(Unreachable, self).__init__('unreachable', detail, hint=hint)
        self.sent = sent


def _text(v):
    return str(v).lower() if isinstance(v, bool) else str(v)


def _blocker(b):
    text = '{0} {1}'.format(b.get('kind', ''), b.get('id', '')).strip()
    if b.get('name') and b.get('name') != b.get('id'):
        text += ' ({0})'.format(b['name'])
    if b.get('note'):
        text += ': ' + b['note']
    return text


class Request(object):
    """One call of a route: the names below /v1 unescaped, the body as Python has it."""

    def __init__(self, method, *names, **more):
        self.method = method
        self.names = names
        self.query = more.pop('query', None) or {}
        self.body = more.pop('body', None)
        # A POST without a key of its own could not be sent again.
        self.key = str(uuid.uuid4()) if method == 'POST' else None
        if more:
            raise TypeError('unknown: ' + ', '.join(more))

    def __str__(self):
        return '{0} /v1/{1}'.format(self.method, '/'.join(self.names))

    def target(self, **query):
        """The path and query, escaped."""
        path = '/v1'
        for name in self.names:
            # An empty or dotted name would make another path of this one.
            if not name.strip('.'):
                raise Problem('invalid', 'cannot {0}: "{1}" is no name'.format(self.method.lower(), name))
            path += '/' + urllib.parse.quote(name.encode('utf-8', 'surrogateescape'), safe='')
        values = sorted((k, _text(v)) for k, v in dict(self.query, **query).items() if v is not None)
        if values:
            path += '?' + urllib.parse.urlencode(values, errors='surrogateescape')
        return path

    def again(self):
        """Sent twice it does what it does once. Of a DELETE the second answer is another."""
        return self.method != 'DELETE'


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super(_Connection, self).__init__('gpuvirt', timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _address(url):
    """(host, port) of the URL of a daemon. Nothing is said to one in the clear."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise Problem('invalid', 'url "{0}" cannot be read: {1}'.format(url, e))
    if parts.scheme != 'https' or not parts.hostname or parts.username is not None or parts.path not in ('', '/') or parts.query or parts.fragment:
        raise Problem('invalid', 'url "{0}" is not of the form https://HOST:PORT'.format(url))
    return parts.hostname, port


def _context(ca_path, client_cert, client_key):
    """How TLS is spoken: with whom, and who we are."""
    try:
        folder = ca_path is not None and os.path.isdir(ca_path)
        context = ssl.create_default_context(cafile=None if folder else ca_path, capath=ca_path if folder else None)
    except (OSError, ValueError) as e:
        raise Problem('invalid', 'ca_path "{0}" cannot be used: {1}'.format(ca_path, e))
    if client_cert is not None:
        try:
            context.load_cert_chain(client_cert, client_key)
        except (OSError, ValueError) as e:
            raise Problem('invalid', 'client_cert "{0}" cannot be used with its key: {1}'.format(client_cert, e))
    return context


class Client(object):
    """Speaks to the daemon behind a unix socket, or over the network.

    timeout is the seconds within which all must be done that it is asked for, from
    now on. With a url, path does not count. The daemon there must have a certificate of
    a CA in ca_path, a file or folder, or else of one that the system trusts. It is
    told who asks by client_cert with client_key, or by token.
    """

    def __init__(self, path=SOCKET, timeout=300, url=None, ca_path=None, client_cert=None, client_key=None, token=None):
        self.path = path
        self.address = None
        self.token = None
        if url is not None:
            self.path = url
            self.address = _address(url)
            self.context = _context(ca_path, client_cert, client_key)
            self.token = token
            # Others would make another header of it.
            if token is not None and not all('!' <= c <= '~' for c in token):
                raise Problem('invalid', 'the token has characters that no token has')
        elif any(v is not None for v in (ca_path, client_cert, client_key, token)):
            raise Problem('invalid', 'ca_path, client_cert, client_key and token take url')
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout

    def left(self):
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    # ---- what one asks for

    def get(self, *names, **query):
        """The object."""
        return self.send(Request('GET', *names, query=query))[1]

    def find(self, *names):
        """The object, or None."""
        try:
            return self.get(*names)
        except Problem as p:
            if not p.is_gone():
                raise
            return None

    def list(self, *names, **filters):
        """All items, of however many pages."""
        limit = filters.pop('limit', 500)
        items, cursor = [], None
        while True:
            page = self.send(Request('GET', *names, query=dict(filters, limit=limit, cursor=cursor)))[1]
            items.extend(page['items'])
            cursor = page.get('next')
            if not cursor:
                return items

    def plan(self, request, refuse=True):
        """The plan of a write, by its dry run. A refusal in it is raised, if it is to be."""
        plan = self.send(request, dry_run='true')[1]
        if refuse and plan.get('problem'):
            raise Problem.of(plan['problem'])
        return plan

    def write(self, request):
        """Do it: (object, None), or (None, operation) where it takes longer."""
        status, body = self.send(request)
        if status == 202:
            return None, body
        return body, None

    def wait(self, operation):
        """Wait until an operation ends or waits for a person, and return it as it is then.

        The operation goes on also where the daemon starts anew meanwhile.
        """
        while True:
            left = self.left()
            if left <= 0:
                raise Problem(
                    'timeout', 'operation {0} has not ended within {1} seconds, and goes on'.format(operation, self.timeout),
                    operation=operation, hint='ask for more with timeout, or look at it: gpuvirt operation show ' + operation)
            most = min(left, ANSWER - 20)
            try:
                op = self.send(
                    Request('GET', 'operations', operation, 'wait', query=dict(timeout='{0}ms'.format(max(1, int(most * 1000))))),
                    patient=True)[1]
            except Problem as p:
                if p.status != 429:
                    p.operation = p.operation or operation
                    raise
                time.sleep(min(1, max(0, self.left())))
                continue
            if op.get('status') in RESTING:
                return op

    # ---- how it travels

    def send(self, request, patient=False, **query):
        """Send a request and return (status, body); again where its connection broke.

        Who is not there at all is not waited for, unless patient. Who was may be
        starting anew.
        """
        until = min(time.monotonic() + PATIENCE, self.deadline)
        while True:
            try:
                return self._exchange(request, request.target(**query))
            except Unreachable as p:
                if not p.sent and not patient or not request.again() or time.monotonic() > until:
                    raise
            patient = True
            time.sleep(0.3)

    def _connection(self, timeout):
        if self.address is None:
            return _Connection(self.path, timeout)
        return http.client.HTTPSConnection(self.address[0], self.address[1], timeout=timeout, context=self.context)

    def _exchange(self, request, target):
        within = min(ANSWER, max(1, self.left() + 5))
        headers = {'Accept': 'application/json, application/problem+json', 'User-Agent': 'gpuvirt-ansible', 'Connection': 'close'}
        body = None
        if request.body is not None:
            body = json.dumps(request.body).encode('utf-8')
            headers['Content-Type'] = 'application/json'
        if request.key:
            headers['Idempotency-Key'] = request.key
        if self.token:
            headers['Authorization'] = 'Bearer ' + self.token
        connection = self._connection(within)
        try:
            try:
                connection.connect()
            except (OSError, ssl.CertificateError) as e:
                raise self._not_there(e)
            try:
                connection.request(request.method, target, body, headers)
                answer = connection.getresponse()
                data = answer.read(MAX_BODY + 1)
            except socket.timeout:
                raise self._silent(request, within)
            except (OSError, http.client.HTTPException) as e:
                raise Unreachable('cannot finish {0}: the daemon at {1} hung up: {2}'.format(request, self.path, str(e) or type(e).__name__), sent=True)
        finally:
            connection.close()
        return self._read(request, answer.status, data)

    def _not_there(self, e):
        hint = 'is gpuvirtd running? systemctl status gpuvirtd.socket gpuvirtd'
        if isinstance(e, PermissionError):
            hint = 'the socket is open to root and to the group gpuvirt: use become'
        if self.address is not None:
            hint = 'does it serve on the network? tls.listen in its configuration'
        # Of Python 3.6 it is an error of its own kind.
        if isinstance(e, (getattr(ssl, 'SSLCertVerificationError', ssl.CertificateError), ssl.CertificateError)):
            hint = 'its certificate must be of a CA in ca_path, and for the name in url'
        return Unreachable('cannot reach the daemon at {0}: {1}'.format(self.path, getattr(e, 'strerror', None) or e), sent=False, hint=hint)

    def _silent(self, request, within):
        detail = 'no answer to {0} came within {1:.0f} seconds'.format(request, within)
        if request.method != 'GET':
            detail += ', and whether it was done is not known'
        # It is not sent again: a daemon that hangs would only get more to do.
        return Problem('timeout', detail)

    def _read(self, request, status, data):
        if len(data) > MAX_BODY:
            raise Problem('internal', 'the answer to {0} is longer than {1} bytes'.format(request, MAX_BODY), status=status)
        try:
            body = json.loads(data.decode('utf-8')) if data else {}
        except ValueError:
            body = None
        if status >= 400:
            if isinstance(body, dict) and body.get('code'):
                raise Problem.of(dict(body, status=status))
            raise Problem('internal', '{0} is answered with status {1}, and nothing is said about it'.format(request, status), status=status)
        if not isinstance(body, dict):
            raise Problem('internal', 'the answer to {0} cannot be read: is {1} that of gpuvirtd?'.format(request, self.path), status=status)
        return status, body
