#!/bin/sh
[ "$(wc -l < bundle.txt)" -eq 100 ]
