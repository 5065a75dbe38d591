# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How gunicorn serves the API inside its container.

GUNICORN_CMD_ARGS overrides any of it, for example GUNICORN_CMD_ARGS="--workers 4".
"""

wsgi_app = "iris_api.app:create_app()"
bind = "0.0.0.0:5000"
workers = 2
worker_class = "gthread"
threads = 4
# The root file system may be read-only; workers tell the master they live through a file.
worker_tmp_dir = "/dev/shm"
# The run-time control socket would need a writable folder too.
control_socket_disable = True
accesslog = "-"
errorlog = "-"
# A prediction takes microseconds: a worker silent for this many seconds hangs.
timeout = 30
graceful_timeout = 10
