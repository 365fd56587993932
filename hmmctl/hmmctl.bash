# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of hmmctl for bash. Ids and names come from the hmmd that the command line names.

# The values of one field of a JSON list, one a line.
_hmmctl_values() {
	hmmctl "${hmmctl_socket[@]}" -j "$1" 2>/dev/null | sed -n "s/^ *\"$2\": *\"\{0,1\}\([^\",]*\).*/\1/p" | sort -u
}

_hmmctl() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' i options
	local -a hmmctl_socket=()

	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--socket) hmmctl_socket=(--socket "${COMP_WORDS[++i]}") ;;
		--pid | --owner | --mirror | --device | --to | --churn | --interval | --device-memory) ((i++)) ;;
		--)
			_command_offset $((i + 1))
			return
			;;
		-*) ;;
		*) [ -n "$command" ] || command=${COMP_WORDS[i]} ;;
		esac
	done

	case $previous in
	--socket)
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return
		;;
	--to) options='device system' ;;
	--pid) options=$(_hmmctl_values mirrors pid) ;;
	--owner) options=$(_hmmctl_values mirrors owner) ;;
	--mirror) options=$(hmmctl "${hmmctl_socket[@]}" mirrors 2>/dev/null | awk '/^ *MIRROR/ { on = 1; next } on { print $1 }') ;;
	--device) options=$(_hmmctl_values mirrors device_name) ;;
	--churn | --interval | --device-memory) return ;;
	*)
		case $command in
		'') options='status features doctor clients mirrors map advice pools usage stats migrate drain watch run device help
			--socket --json --help --version' ;;
		help) options='status features doctor clients mirrors map advice pools usage stats migrate drain watch run device' ;;
		clients | watch) options='--pid --owner --json' ;;
		mirrors | map | advice | stats | drain) options='--pid --owner --mirror --device --json' ;;
		migrate) options='--to --populate --pid --owner --mirror --device --json' ;;
		device)
			options='bind unbind --dry-run --force --json'
			[[ " ${COMP_WORDS[*]:1:COMP_CWORD-1} " != *bind\ * ]] || options="$(ls /sys/bus/pci/devices 2>/dev/null) --dry-run --force --json"
			# An address has colons, at which readline divides words.
			declare -F _get_comp_words_by_ref >/dev/null && _get_comp_words_by_ref -n : -c current
			mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
			declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$current"
			return
			;;
		run) options='--churn --interval --device-memory --private --verbose --' ;;
		*) options='--json' ;;
		esac
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
}

complete -F _hmmctl hmmctl
