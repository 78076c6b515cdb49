"""Foreign programs for the tests: real peers on free loopback ports, and clients with deadlines.

``dcmtk``, ``orthanc``, ``pynetdicom_apps`` and ``prometheus`` start servers as context managers that yield once a foreign
request was answered, and build clients as :class:`~tests.peers.running.Command`. ``fixtures`` offers the servers to tests.
``programs`` knows what must be installed; it runs without the project's dependencies, so nothing is imported here.
"""
