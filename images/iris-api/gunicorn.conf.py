# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How gunicorn serves the API inside its container.

GUNICORN_CMD_ARGS overrides any of it, for example GUNICORN_CMD_ARGS="--workers 4".
"""

wsgi_app = "iris_api.app:create_app()"
bind = "0.0.0.0:5000"
workers = 2
worker_class = "iris_api.worker.Worker"
# One request for each connection: a client cannot hold one by sending nothing.
keepalive = 0
# Connections of each worker. One that sends endless headers uses 48 times 4 KiB.
worker_connections = 256
limit_request_fields = 48
limit_request_field_size = 4096
# The root file system may be read-only; workers tell the master they live through a file.
worker_tmp_dir = "/dev/shm"
# The run-time control socket would need a writable folder too.
control_socket_disable = True
accesslog = "-"
errorlog = "-"
# A prediction takes microseconds: a worker silent for this many seconds hangs.
timeout = 30
graceful_timeout = 10
