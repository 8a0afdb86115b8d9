#!/bin/bash
# The first process of a worker on another kernel. All that is special about the machine is in a folder outside, which
# NETWEFT_MACHINE (on the kernel's command line) names.
mount -t hostfs -o "$NETWEFT_MACHINE" none /machine
exec bash /machine/node.sh
