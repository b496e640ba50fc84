# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""The client over the network: who it trusts, and as whom it speaks."""

import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import unittest

try:
    from http.server import BaseHTTPRequestHandler, HTTPServer
except ImportError:
    raise unittest.SkipTest('Python 3')

from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import client as c


class Daemon(BaseHTTPRequestHandler):
    """Answers with what it knows of who asks."""

    def do_GET(self):
        peer = self.connection.getpeercert()
        names = [v for part in (peer or {}).get('subject', ()) for k, v in part if k == 'commonName']
        body = c.json.dumps(dict(token=self.headers.get('Authorization'), client=names)).encode('utf-8')
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused):
        pass


class TestNetwork(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix='gv')
        for ca in ('ca', 'other'):
            cls.openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=' + ca,
                        '-addext', 'keyUsage=critical,keyCertSign,cRLSign',  # Python 3.13 wants it of a CA
                        '-keyout', ca + '.key', '-out', ca + '.pem')
        for name, san in (('server', 'IP:127.0.0.1'), ('wrong', 'DNS:elsewhere.example.com'), ('alice', 'email:alice@example.com')):
            cls.openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=' + name,
                        '-keyout', name + '.key', '-out', name + '.csr')
            with open(cls.path(name + '.ext'), 'w') as f:
                f.write('subjectAltName=' + san)
            cls.openssl('x509', '-req', '-in', name + '.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '1',
                        '-extfile', name + '.ext', '-out', name + '.pem')
        cls.servers = []

    @classmethod
    def tearDownClass(cls):
        for s in cls.servers:
            s.shutdown()
            s.server_close()
        shutil.rmtree(cls.dir)

    @classmethod
    def openssl(cls, *args):
        subprocess.run(('openssl',) + args, cwd=cls.dir, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.dir, name)

    def serve(self, name):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(name + '.pem'), self.path(name + '.key'))
        context.load_verify_locations(self.path('ca.pem'))
        context.verify_mode = ssl.CERT_OPTIONAL
        server = HTTPServer(('127.0.0.1', 0), Daemon)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *unused: None
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return 'https://127.0.0.1:{0}'.format(server.server_port)

    def client(self, **more):
        return c.Client(timeout=10, **more)

    def refused(self, code, do):
        with self.assertRaises(c.Problem) as caught:
            do()
        self.assertEqual(caught.exception.code, code)
        return caught.exception

    def test_a_token_says_who_asks(self):
        url = self.serve('server')
        got = self.client(url=url, ca_path=self.path('ca.pem'), token='s3cret').get('x')
        self.assertEqual(got, dict(token='Bearer s3cret', client=[]))
        self.assertEqual(self.client(url=url + '/', ca_path=self.path('ca.pem')).get('x')['token'], None)

    def test_or_a_certificate(self):
        url = self.serve('server')
        got = self.client(url=url, ca_path=self.path('ca.pem'), client_cert=self.path('alice.pem'), client_key=self.path('alice.key')).get('x')
        self.assertEqual(got, dict(token=None, client=['alice']))

    def test_a_daemon_of_another_ca_is_told_nothing(self):
        p = self.refused('unreachable', lambda: self.client(url=self.serve('server'), ca_path=self.path('other.pem'), token='s3cret').get('x'))
        self.assertIn('ca_path', p.hint)
        self.refused('unreachable', lambda: self.client(url=self.serve('server'), token='s3cret').get('x'))

    def test_nor_is_one_of_another_name(self):
        p = self.refused('unreachable', lambda: self.client(url=self.serve('wrong'), ca_path=self.path('ca.pem'), token='s3cret').get('x'))
        self.assertIn('ca_path', p.hint)

    def test_nobody_is_there(self):
        p = self.refused('unreachable', lambda: self.client(url='https://127.0.0.1:1', ca_path=self.path('ca.pem')).get('x'))
        self.assertIn('tls.listen', p.hint)

    def test_what_cannot_be_used(self):
        ca = self.path('ca.pem')
        for more in (
            dict(url='http://127.0.0.1:1'), dict(url='https://'), dict(url='https://kvm1/v1'), dict(url='https://kvm1:x'), dict(url='kvm1'),
            dict(url='https://root:x@kvm1'), dict(url='https://kvm1?x=1'), dict(token='x'), dict(ca_path=ca), dict(client_cert=ca),
            dict(url='https://kvm1', ca_path=self.path('none')), dict(url='https://kvm1', ca_path=self.path('ca.key')),
            dict(url='https://kvm1', client_cert=self.path('none')), dict(url='https://kvm1', client_cert=self.path('alice.pem')),
            dict(url='https://kvm1', client_cert=self.path('alice.pem'), client_key=self.path('server.key')),
            dict(url='https://kvm1', token='x\r\nHost: y'), dict(url='https://kvm1', token=u'\xfc'),
        ):
            self.refused('invalid', lambda: self.client(**more))

    def test_no_secret_is_told(self):
        for more in (dict(token='s3cret'), dict(url='https://kvm1', token='s3cret\n')):
            p = self.refused('invalid', lambda: self.client(**more))
            self.assertNotIn('s3cret', p.message())


if __name__ == '__main__':
    unittest.main()
