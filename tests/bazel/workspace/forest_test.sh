#!/bin/sh
[ -x forest/climb ] && [ -f forest/ash/leaves/leaf-5 ] && [ -e forest/empty ]
