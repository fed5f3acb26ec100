"""Bugs to plant, one line each, as a tired person types them."""

from tests.cuda_host.bugs import eca, engine, se, sk, zoo

#: in csrc/
BUGS = (*engine.BUGS, *se.BUGS, *eca.BUGS, *sk.BUGS)
ZOO_BUGS = zoo.BUGS
