# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""What the pages, the examples and the documentation of modules show is what modules, the role and the inventory take."""

import ast
import glob
import importlib
import os
import re
import unittest

try:
    import yaml
    from ansible_collections.gpuvirt.gpuvirt.plugins.module_utils import module as m
except ImportError:  # there is no Ansible beside this interpreter
    m = None

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', '..')
OURS = 'gpuvirt.gpuvirt.'


def read(*names):
    with open(os.path.join(TOP, *names), encoding='utf-8') as f:
        return f.read()


def load(name):
    module = importlib.import_module('ansible_collections.gpuvirt.gpuvirt.plugins.modules.' + name)
    said = []
    was, module.run = module.run, lambda *args, **kwargs: said.append(kwargs)
    try:
        module.main()
    finally:
        module.run = was
    return module, said[0]['argument_spec']


def texts(*names):
    """The strings that a file of Python gives names. Not every one can be imported here."""
    return dict((n.targets[0].id, n.value.value) for n in ast.parse(read(*names)).body
                if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str))


def unknown(options, given, at):
    """The names in what is given that are no options. What a template makes is not looked into."""
    found = []
    for values in given if isinstance(given, list) else [given]:
        for name, value in values.items() if isinstance(values, dict) else ():
            if name not in options:
                found.append('{0}.{1}'.format(at, name))
            elif options[name].get('options'):
                found += unknown(options[name]['options'], value, '{0}.{1}'.format(at, name))
    return found


def undocumented(options, documented, at):
    """Where the documentation and what is taken differ."""
    found = ['{0}.{1}'.format(at, name) for name in set(options) ^ set(documented)]
    for name in set(options) & set(documented):
        taken, told = options[name], documented[name]
        for key, default in (('type', 'str'), ('required', False), ('choices', None), ('elements', None), ('default', None)):
            if taken.get(key, default) != told.get(key, default):
                found.append('{0}.{1}: {2} {3!r}, documented {4!r}'.format(at, name, key, taken.get(key), told.get(key)))
        found += undocumented(taken.get('options') or {}, told.get('suboptions') or {}, '{0}.{1}'.format(at, name))
    return found


@unittest.skipIf(m is None, 'needs Ansible')
class Shown(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.modules, cls.specs, cls.seen = {}, {}, 0
        for path in glob.glob(os.path.join(TOP, 'ansible', 'plugins', 'modules', '*.py')):
            name = os.path.basename(path)[:-3]
            cls.modules[name], cls.specs[name] = load(name)
        cls.role = yaml.safe_load(read('ansible', 'roles', 'host', 'meta', 'argument_specs.yml'))['argument_specs']['main']['options']

    def look(self, value, at):
        """Everything of ours in a playbook, or in a part of one."""
        if isinstance(value, list):
            for item in value:
                self.look(item, at)
        if not isinstance(value, dict):
            return
        name = value.get('role') or (value.get('ansible.builtin.include_role') or {}).get('name')
        if name == OURS + 'host':
            given = dict((k, v) for k, v in (value.get('vars') or {}).items() if k.startswith('gpuvirt_'))
            self.seen += 1
            self.assertEqual(unknown(self.role, given, at), [])
        for key, inner in value.items():
            if key == 'group/gpuvirt.gpuvirt.gpuvirt':
                for module, spec in self.specs.items():
                    self.assertEqual(unknown(spec, inner, '{0}: {1} of {2}'.format(at, key, module)), [])
            elif key.startswith(OURS):
                self.seen += 1
                self.assertIn(key[len(OURS):], self.specs, at)
                self.assertEqual(unknown(self.specs[key[len(OURS):]], inner or {}, '{0}: {1}'.format(at, key)), [])
            else:
                self.look(inner, at)

    def test_pages(self):
        for page in ['README.md', 'docs/ansible.md', 'ansible/README.md'] + glob.glob(os.path.join(TOP, 'docs', 'guides', '*.md')):
            for block in re.findall(r'^```ya?ml\n(.*?)^```', read(page), re.S | re.M):
                self.look(yaml.safe_load(block), page)
        self.assertGreater(self.seen, 15)

    def test_examples(self):
        for name, module in self.modules.items():
            self.look(yaml.safe_load(module.EXAMPLES), name)
        for path in glob.glob(os.path.join(TOP, 'packaging', 'examples', 'ansible', '*.yml')):
            self.look(yaml.safe_load(read(path)), path)
        self.assertGreater(self.seen, 2 * len(self.modules) / 3)

    def test_inventory(self):
        inventory = texts('ansible', 'plugins', 'inventory', 'gpuvirt.py')
        hosts = yaml.safe_load(inventory['DOCUMENTATION'])['options']['hosts']['suboptions']
        shown = [block for block in re.findall(r'^```ya?ml\n(.*?)^```', read('docs', 'ansible.md'), re.S | re.M) if '\nplugin: ' in block]
        shown += [inventory['EXAMPLES'], read('packaging', 'examples', 'ansible', 'inventory.gpuvirt.yml')]
        self.assertEqual(len(shown), 3)
        for text in shown:
            for document in yaml.safe_load_all(text):
                self.assertEqual(document['plugin'], OURS + 'gpuvirt')
                self.assertEqual(unknown(hosts, document['hosts'], 'hosts'), [])

    def test_documentation(self):
        fragments = importlib.import_module('ansible_collections.gpuvirt.gpuvirt.plugins.doc_fragments.connection').ModuleDocFragment
        for name, module in self.modules.items():
            told = yaml.safe_load(module.DOCUMENTATION)
            options = dict(told.get('options') or {})
            for fragment in told.get('extends_documentation_fragment') or []:
                part = (fragment.split('.') + ['DOCUMENTATION'])[3].upper() if fragment.startswith(OURS) else None
                self.assertIsNotNone(part, fragment)
                options.update(yaml.safe_load(getattr(fragments, part)).get('options') or {})
            self.assertEqual(undocumented(self.specs[name], options, name), [])


if __name__ == '__main__':
    unittest.main()
