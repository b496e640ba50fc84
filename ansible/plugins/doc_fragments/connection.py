# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0


class ModuleDocFragment(object):

    DOCUMENTATION = r'''
options:
  socket:
    description:
      - The unix socket of the daemon C(gpuvirtd) on the managed host.
      - It is open to root, and to the group C(gpuvirt) for whatever does not change GPUs.
    type: path
    default: /run/gpuvirt/gpuvirtd.sock
  url:
    description:
      - The daemon over the network, in place of I(socket), as C(https://kvm1.example.com:8443). It has to serve there (C(tls.listen)).
      - The module may run anywhere then, so that I(delegate_to=localhost) saves a way into the host.
      - It is told who asks by I(token), or by I(client_cert).
    type: str
  ca_path:
    description:
      - The certificate of the CA by which the daemon at I(url) is known, as a file in PEM or a folder of them.
      - If absent, the CAs that the system trusts.
    type: path
  client_cert:
    description: The certificate, in PEM, by which the daemon at I(url) knows who asks. The file may have the key as well.
    type: path
  client_key:
    description: The key of I(client_cert), in PEM.
    type: path
  token:
    description: The secret of a token by which the daemon at I(url) knows who asks. M(gpuvirt.gpuvirt.token) makes them.
    type: str
  wait:
    description:
      - Whether to wait until what was begun has ended, and for an operation of somebody else that is at work on the same.
      - Without it the module returns as soon as the daemon has begun, with the id of the C(operation). Whether that succeeds is
        not known then.
      - Modules that only read take it, so that it can stand in C(module_defaults), and do not wait.
    type: bool
    default: true
  timeout:
    description:
      - The seconds in which all must be done.
      - An operation that has begun and takes longer goes on, and the module fails with the code C(timeout).
    type: int
    default: 300
requirements:
  - python >= 3.6 on the managed host, and nothing beside it
  - a running C(gpuvirtd) there
notes:
  - A task that fails returns C(code), C(detail), C(hint), C(blockers), C(operation), C(step),
    C(status) and C(differences), as the daemon says them. The codes are those of its API, and C(unreachable), C(timeout) and
    C(waiting).
'''

    # How a module that changes something behaves.
    CHANGES = r'''
options: {}
attributes:
  check_mode:
    description: The daemon plans what it would do, and refuses what it would refuse. Nothing is changed or reserved.
    support: full
  diff_mode:
    description: What is different before and after, in check mode as well.
    support: full
'''

    # How a module that only reads behaves.
    READS = r'''
options: {}
attributes:
  check_mode:
    description: It only reads.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
'''
