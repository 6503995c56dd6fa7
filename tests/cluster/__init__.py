"""A real Slurm cluster on this machine for the tests: two nodes, four pretended GPUs each.

    install.py        its packages, by apt           configuration.py  slurm.conf and the like
    cluster.py        start, stop, break              daemons.py        processes, waiting
    leftovers.py      undo what a cluster left        __main__.py       a cluster for a person

It has a folder, ports and a SLURM_CONF of its own and never touches a cluster that is already here.
"""
