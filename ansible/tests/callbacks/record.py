# -*- coding: utf-8 -*-
# Copyright: The gpuvirt authors
# Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

"""Writes one line of JSON for each task into the file RECORD, for tests/run to compare."""

DOCUMENTATION = r'''
name: record
type: aggregate
short_description: Record what became of each task
version_added: 0.1.0
author:
  - The gpuvirt authors (@gpuvirt)
description:
  - Writes one line of JSON for each task into the file that the variable RECORD of the environment names.
'''

import json
import os

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = 'aggregate'
    CALLBACK_NAME = 'record'

    def record(self, result, failed):
        name = os.environ.get('RECORD')
        if not name:
            return
        task, res = result._task, result._result
        line = dict(task=task.get_name(), action=task.action, changed=bool(res.get('changed')), failed=failed, diff=res.get('diff'))
        # Each that tells a difference, also of a loop, tells this, too.
        line['restart'] = [i.get('restart_required') for i in res.get('results', [res]) if 'diff' in i]
        with open(name, 'a') as f:
            f.write(json.dumps(line, sort_keys=True) + '\n')

    def v2_runner_on_ok(self, result):
        self.record(result, False)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.record(result, True)
