# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""The client against a daemon that answers badly."""

import json
import os
import shutil
import socket
import tempfile
import threading
import time
import unittest

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import client as c


class Server(threading.Thread):
    """Answers one connection after the other with what it is given, and keeps what it was asked."""

    def __init__(self, path, *answers):
        super(Server, self).__init__()
        self.daemon = True
        self.asked = []
        self.answers = list(answers)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(5)
        self.start()

    def run(self):
        for answer in self.answers:
            connection = self.listener.accept()[0]
            self.asked.append(self.read(connection))
            if callable(answer):
                answer()
            else:
                connection.sendall(answer)
            connection.close()
        self.listener.close()

    @staticmethod
    def read(connection):
        data = b''
        while b'\r\n\r\n' not in data:
            data += connection.recv(65536)
        head, body = data.split(b'\r\n\r\n', 1)
        for line in head.split(b'\r\n'):
            if line.lower().startswith(b'content-length:'):
                while len(body) < int(line.split(b':')[1]):
                    body += connection.recv(65536)
        return (head + b'\r\n\r\n' + body).decode('utf-8')


def answer(status, body, kind='application/json'):
    data = body if isinstance(body, bytes) else json.dumps(body).encode('utf-8')
    head = 'HTTP/1.1 {0} X\r\nContent-Type: {1}\r\nContent-Length: {2}\r\n\r\n'.format(status, kind, len(data))
    return head.encode('ascii') + data


def nothing():
    pass


class TestClient(unittest.TestCase):

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix='gv')
        self.addCleanup(shutil.rmtree, self.dir)
        self.path = os.path.join(self.dir, 's')
        c.PATIENCE, self.patience = 2, c.PATIENCE
        c.ANSWER, self.answer = 60, c.ANSWER

    def tearDown(self):
        c.PATIENCE, c.ANSWER = self.patience, self.answer

    def client(self, timeout=20):
        return c.Client(self.path, timeout)

    def refused(self, do, code):
        with self.assertRaises(c.Problem) as caught:
            do()
        self.assertEqual(caught.exception.code, code)
        return caught.exception

    def test_a_list_has_all_pages(self):
        s = Server(self.path, answer(200, dict(items=[1, 2], next='bmV4dA')), answer(200, dict(items=[3])))
        self.assertEqual(self.client().list('gpus', managed=True), [1, 2, 3])
        self.assertIn('GET /v1/gpus?limit=500&managed=true HTTP', s.asked[0])
        self.assertIn('GET /v1/gpus?cursor=bmV4dA&limit=500&managed=true HTTP', s.asked[1])

    def test_names_are_escaped(self):
        s = Server(self.path, answer(200, {}))
        self.client().get('vms', u'gr\xf6\xdfe %41/../x?#&')
        self.assertIn('GET /v1/vms/gr%C3%B6%C3%9Fe%20%2541%2F..%2Fx%3F%23%26 HTTP', s.asked[0])
        for name in ('', '.', '..'):
            self.refused(lambda: self.client().get('vms', name), 'invalid')

    def test_a_problem_is_told_whole(self):
        doc = dict(code='gpu-busy', detail='cannot do it', hint='end it', blockers=[
            dict(kind='process', id='4711', name='qemu', note='has it open')], diff=dict(vm=dict(stored='a', asked='b')))
        Server(self.path, answer(409, doc, 'application/problem+json'))
        p = self.refused(lambda: self.client().get('gpus'), 'gpu-busy')
        self.assertEqual(p.message(), 'cannot do it; vm is "a", asked for "b"; in the way: process 4711 (qemu): has it open; hint: end it (gpu-busy)')
        self.assertEqual((p.status, p.fields()['blockers'][0]['id']), (409, '4711'))

    def test_what_the_detail_says_is_not_said_again(self):
        p = c.Problem('x', 'cannot place it: g1: full; g2: off', blockers=[dict(kind='gpu', id='g1', note='full'), dict(kind='gpu', id='g3')])
        self.assertEqual(p.message(), 'cannot place it: g1: full; g2: off; in the way: gpu g3 (x)')

    def test_a_refusal_in_a_plan_is_raised(self):
        s = Server(self.path, answer(200, dict(changes=False, problem=dict(code='no-capacity', status=507, detail='cannot place it'))))
        request = c.Request('PUT', 'assignments', 'a', body=dict(vm='x'))
        self.refused(lambda: self.client().plan(request), 'no-capacity')
        self.assertIn('PUT /v1/assignments/a?dry_run=true HTTP', s.asked[0])
        self.assertIn('{"vm": "x"}', s.asked[0])

    def test_nobody_is_there(self):
        began = time.monotonic()
        p = self.refused(lambda: self.client().get('gpus'), 'unreachable')
        self.assertLess(time.monotonic() - began, 1)
        self.assertIn(self.path, p.detail)
        self.assertIn('gpuvirtd', p.hint)

    def test_a_socket_without_a_listener(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(s.close)
        s.bind(self.path)
        self.refused(lambda: self.client().get('gpus'), 'unreachable')

    def test_a_broken_connection_is_tried_again(self):
        s = Server(self.path, nothing, answer(202, dict(id='op')))
        self.assertEqual(self.client().write(c.Request('POST', 'partitions', body={})), (None, dict(id='op')))
        key = [line for line in s.asked[0].split('\r\n') if line.startswith('Idempotency-Key')]
        self.assertEqual(key, [line for line in s.asked[1].split('\r\n') if line.startswith('Idempotency-Key')])
        self.assertEqual(len(key), 1)

    def test_but_not_a_delete(self):
        s = Server(self.path, nothing, answer(200, {}))
        self.refused(lambda: self.client().write(c.Request('DELETE', 'partitions', 'x')), 'unreachable')
        self.assertEqual(len(s.asked), 1)

    def test_silence(self):
        c.ANSWER = 1
        Server(self.path, lambda: time.sleep(3))
        p = self.refused(lambda: self.client().write(c.Request('PUT', 'x', body={})), 'timeout')
        self.assertIn('whether it was done is not known', p.detail)

    def test_who_is_not_the_daemon(self):
        for body in (b'<html>', b'[]', b'\xff', b''):
            if os.path.exists(self.path):
                os.unlink(self.path)
            Server(self.path, answer(502, body, 'text/html'))
            self.refused(lambda: self.client().get('gpus'), 'internal')
        os.unlink(self.path)
        Server(self.path, b'SSH-2.0-OpenSSH\r\n', b'', b'', b'', b'', b'', b'', b'', b'')
        self.refused(lambda: self.client().get('gpus'), 'unreachable')

    def test_waiting(self):
        s = Server(
            self.path, answer(200, dict(id='o', status='running')), nothing, answer(429, dict(code='busy', detail='too many')),
            answer(200, dict(id='o', status='done')))
        self.assertEqual(self.client().wait('o')['status'], 'done')
        self.assertIn('GET /v1/operations/o/wait?timeout=', s.asked[0])

    def test_waiting_ends(self):
        def running():
            time.sleep(0.6)

        one = answer(200, dict(id='o', status='running'))
        server = Server(self.path, one, one, one, one)
        original = server.read
        server.read = lambda connection: (running(), original(connection))[1]
        p = self.refused(lambda: self.client(1).wait('o'), 'timeout')
        self.assertEqual(p.operation, 'o')
        self.assertIn('goes on', p.detail)

    def test_the_daemon_comes_back_while_one_waits(self):
        def later():
            time.sleep(0.7)
            Server(self.path, answer(200, dict(id='o', status='done')))

        threading.Thread(target=later).start()
        self.assertEqual(self.client().wait('o')['status'], 'done')

    def test_why_an_operation_did_not_do_it(self):
        op = dict(id='OP', summary='lay out gpu x', abort=False, status='waiting', reason='reset it')
        p = c.Problem.of_operation(op)
        self.assertEqual((p.code, p.operation), ('waiting', 'OP'))
        self.assertIn('waits for a person: reset it', p.message())
        p = c.Problem.of_operation(dict(op, status='undone', abort=True))
        self.assertEqual(p.code, 'aborted')
        self.assertIn('cannot lay out gpu x: somebody aborted it; what was done of it is undone', p.message())
        p = c.Problem.of_operation(dict(op, status='failed', problem=dict(code='stuck', detail='it hangs', step='mig.mode')))
        self.assertEqual((p.code, p.step, p.is_gone()), ('stuck', 'mig.mode', False))
        self.assertIn('held', p.message())


if __name__ == '__main__':
    unittest.main()
