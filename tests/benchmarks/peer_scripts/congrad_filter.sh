#!/bin/bash
# congrad_filter.sh PAIRS MODEL KEPT
set -euo pipefail
congrad sketch "$1" --model "$2" | congrad consensus --method mean | congrad filter > "$3"
