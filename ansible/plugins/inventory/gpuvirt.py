# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r'''
---
name: gpuvirt
short_description: The VMs that have GPUs
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Asks the daemons C(gpuvirtd) of several hosts for their VMs, and makes a host of each that has an assignment.
  - VMs are grouped by the host that has them, by profile, by the GPU and its model, and by their state.
  - It runs where Ansible runs, and reaches a daemon there by a socket or over the network. Its configuration is a file whose name ends in
    C(gpuvirt.yml) or C(gpuvirt.yaml).
  - How to log in to a VM is not known to a daemon. Say it with I(compose).
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [gpuvirt.gpuvirt.gpuvirt]
  hosts:
    description:
      - The daemons to ask. Values may be templates, for secrets to be looked up.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What to call the host.
        type: str
        required: true
      socket:
        description: The unix socket of the daemon, where that runs on this machine or its socket is forwarded.
        type: path
        default: /run/gpuvirt/gpuvirtd.sock
      url:
        description: The daemon over the network, in place of I(socket).
        type: str
      ca_path:
        description: The certificate of the CA by which the daemon at I(url) is known. If absent, the CAs that the system trusts.
        type: path
      client_cert:
        description: The certificate by which the daemon at I(url) knows who asks.
        type: path
      client_key:
        description: The key of I(client_cert).
        type: path
      token:
        description: The secret of a token by which the daemon at I(url) knows who asks. The role viewer is enough.
        type: str
  hostname:
    description:
      - What a VM is called in the inventory. C(name) is its name in libvirt, C(uuid) its UUID, and C(name_host) both its name and that of its host,
        as C(web1.kvm1).
      - Where two VMs would be called the same, nothing is read, and the message names them.
    type: str
    choices: [name, uuid, name_host]
    default: name
  all_vms:
    description: Whether VMs without an assignment are hosts as well.
    type: bool
    default: false
  skip_unreachable:
    description:
      - Whether a daemon that cannot be asked is passed over, with a warning. Otherwise nothing is read, as plays would not notice that hosts are missing.
    type: bool
    default: false
  timeout:
    description: The seconds within which a daemon must have answered.
    type: int
    default: 30
extends_documentation_fragment:
  - constructed
  - inventory_cache
'''

EXAMPLES = r'''
# gpus.gpuvirt.yml
plugin: gpuvirt.gpuvirt.gpuvirt
hosts:
  - name: kvm1
    url: https://kvm1.example.com:8443
    ca_path: /etc/ssl/site-ca.pem
    token: '{{ lookup("ansible.builtin.env", "GPUVIRT_TOKEN_KVM1") }}'
  - name: local
compose:
  ansible_host: gpuvirt_name ~ '.vm.example.com'
keyed_groups:
  # gpuvirt_rack_b7, by a label of the GPU
  - key: gpuvirt_gpus | map(attribute='labels.rack', default='none') | first | default('none')
    prefix: gpuvirt_rack
groups:
  restart: gpuvirt_assignments | selectattr('restart_required') | list | length > 0
'''

from ansible.errors import AnsibleParserError
from ansible.module_utils.common.text.converters import to_native
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils.client import SOCKET, Client, Problem

NETWORK = ('url', 'ca_path', 'client_cert', 'client_key', 'token')
OF_A_HOST = ('name', 'socket') + NETWORK


def ask(client):
    """What of a daemon the inventory is made of."""
    return dict((what, client.list(what)) for what in ('vms', 'assignments', 'gpus'))


def hosts_of(found, all_vms):
    """(vm, variables) for each VM of a daemon's answers."""
    gpus = dict((g['id'], g) for g in found['gpus'])
    for vm in found['vms']:
        mine = [a for a in found['assignments'] if a['vm'] == vm['uuid']]
        if not mine and not all_vms:
            continue
        ids = sorted(set(a['partition_gpu'] for a in mine if a.get('partition_gpu')))
        yield vm, dict(
            gpuvirt_uuid=vm['uuid'],
            gpuvirt_name=vm['name'],
            gpuvirt_state=vm['state'],
            gpuvirt_assignments=sorted(mine, key=lambda a: a['name']),
            gpuvirt_profiles=sorted(set(a['profile'] for a in mine)),
            # A card that is not there any more is known by its id alone.
            gpuvirt_gpus=[gpus.get(i, dict(id=i)) for i in ids])


def groups_of(host, variables):
    """The names of the groups of a VM, before they are made fit."""
    yield 'gpuvirt'
    yield 'gpuvirt_host_' + host
    yield 'gpuvirt_state_' + variables['gpuvirt_state']
    for profile in variables['gpuvirt_profiles']:
        yield 'gpuvirt_profile_' + profile
    for g in variables['gpuvirt_gpus']:
        yield 'gpuvirt_gpu_{0}_{1}'.format(host, g['id'])
        if g.get('model'):
            yield 'gpuvirt_model_' + g['model']


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):

    NAME = 'gpuvirt.gpuvirt.gpuvirt'

    def verify_file(self, path):
        return super(InventoryModule, self).verify_file(path) and path.endswith(('gpuvirt.yml', 'gpuvirt.yaml'))

    def parse(self, inventory, loader, path, cache=True):
        super(InventoryModule, self).parse(inventory, loader, path, cache)
        self._read_config_data(path)
        key = self.get_cache_key(path)
        wanted = self.get_option('cache')
        found = None
        if wanted and cache:
            try:
                found = self._cache[key]
            except KeyError:
                pass
        if found is None:
            found = self._ask_all()
            if wanted:
                self._cache[key] = found
        self._fill(found)

    def _ask_all(self):
        """[[name of the host, its answers]], in the order of the configuration."""
        out, names = [], set()
        for i, host in enumerate(self.get_option('hosts')):
            if not isinstance(host, dict) or not host.get('name'):
                raise AnsibleParserError('hosts[{0}] has no name'.format(i))
            unknown = sorted(set(host) - set(OF_A_HOST))
            if unknown:
                raise AnsibleParserError('host {0} has {1}: there are {2}'.format(host['name'], ', '.join(unknown), ', '.join(OF_A_HOST)))
            values = dict((k, self.templar.template(v)) for k, v in host.items())
            name = values['name']
            if name in names:
                raise AnsibleParserError('there are two hosts {0}'.format(name))
            names.add(name)
            try:
                client = Client(values.get('socket') or SOCKET, self.get_option('timeout'), **dict((k, values.get(k)) for k in NETWORK))
                out.append([name, ask(client)])
            except Problem as p:
                message = 'host {0}: {1}'.format(name, to_native(p.message()))
                if p.code == 'invalid' or not self.get_option('skip_unreachable'):
                    raise AnsibleParserError(message)
                self.display.warning(message)
        return out

    def _fill(self, found):
        strict = self.get_option('strict')
        whose = {}
        for host, answers in found:
            for vm, variables in hosts_of(answers, self.get_option('all_vms')):
                name = dict(name=vm['name'], uuid=vm['uuid'], name_host='{0}.{1}'.format(vm['name'], host))[self.get_option('hostname')]
                if name in whose:
                    raise AnsibleParserError('{0} is a VM of {1} and of {2}: say hostname: name_host, or uuid'.format(name, whose[name], host))
                whose[name] = host
                variables['gpuvirt_host'] = host
                self.inventory.add_host(name)
                for key in sorted(variables):
                    self.inventory.set_variable(name, key, variables[key])
                for group in groups_of(host, variables):
                    self.inventory.add_host(name, group=self.inventory.add_group(self._sanitize_group_name(group)))
                self._set_composite_vars(self.get_option('compose'), variables, name, strict=strict)
                self._add_host_to_composed_groups(self.get_option('groups'), variables, name, strict=strict)
                self._add_host_to_keyed_groups(self.get_option('keyed_groups'), variables, name, strict=strict)
