"""Bugs to plant, one line each, as a tired person types them."""

from tests.cuda_host.bugs import eca, engine, se, sk, sk_block, zoo

#: in csrc/
BUGS = (*engine.BUGS, *se.BUGS, *eca.BUGS, *sk.BUGS, *sk_block.BUGS)
ZOO_BUGS = zoo.BUGS
