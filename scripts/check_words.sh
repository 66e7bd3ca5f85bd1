#!/usr/bin/env bash
# Prose checks: README, CHANGELOG, CONTRIBUTING, docs/ and the help texts in src/cli must not contain the phrases below,
# and every relative link in a page must lead to a file. Prints file:line and the replacement; exits 1 if it finds any.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
found=0

# Extended regular expression, case-insensitive, then what to write instead.
phrases() {
    cat << 'LIST'
of one's own|your own; custom
(need|needs|has|have|takes?) nothing beside|nothing but
has met a GPU|has run on a real GPU
met a GPU yet|run on a real GPU yet
made anew|recomputed; rewritten
(writes|make|makes|making|written|measured|built|starts) (it |them |the table )?anew|regenerate; measure again
broken off|interrupted; stopped
[^"]what computes|Compute device
what came out|the results
held to |checked against; compared with
takes? turns|alternate
take it in turns|alternate
in turns,|alternating
made again|recomputed
(^|[^`])\bknobs?\b|hyperparameter
three ways out|three ways to reduce memory
ways out\b|alternatives
one-hot (family|rows)|target-token loss
matched loss|full-vocabulary loss
rows of the residual stream|hidden states
multiprocessors?\b|SM
direction of good|which direction is better
has nothing to say|need not handle
room for|space for
beside the device|compared with the roofline
the same making|trained identically
in the plain way|ordinary fine-tuning
carries the forget set|remembers the forget set
a sweep over|a pass over
put (together|over) anew|rebuilt
a shield\b|gradient projection
\bfigures? (of|are|is|that)\b|metric; number; result (a chart may be a figure)
laid on (the |preset)|applied on top of
\bbeside (the|its|it|each|what)\b|next to; compared with
the very (ones?|files?)|the same
in (good|great) part|largely
LIST
}

pages=(README.md CHANGELOG.md CONTRIBUTING.md)
while IFS= read -r page; do pages+=("$page"); done < <(find docs experiments -name '*.md' 2> /dev/null | sort)
helps=()
while IFS= read -r file; do helps+=("$file"); done < <(find src/cli -name '*.rs' | sort)

report() { # FILE:LINE:TEXT lines on stdin, the replacement as argument
    while IFS= read -r hit; do
        found=1
        printf '%s\n    write: %s\n' "$hit" "$1"
    done
}

while IFS='|' read -r -a parts; do
    # The last field is the replacement; the pattern may hold bars itself.
    replacement=${parts[-1]}
    unset 'parts[-1]'
    pattern=$(IFS='|'; echo "${parts[*]}")
    report "$replacement" < <(
        grep -niE -- "$pattern" "${pages[@]}" /dev/null || true
        # Help texts are the doc comments of options and commands.
        grep -niE -- "^ *///.*($pattern)" "${helps[@]}" /dev/null || true
    )
done < <(phrases)

for page in "${pages[@]}"; do
    while IFS=: read -r line link; do
        target=${link%%#*}
        case $target in http://* | https://* | mailto:* | '') continue ;; esac
        if [ ! -e "$(dirname "$page")/$target" ]; then
            found=1
            echo "$page:$line: broken link to $target"
        fi
    done < <(grep -noE '\]\([^) ]+\)' "$page" | sed -E 's/\]\(([^)]*)\)/\1/' || true)
done

if [ "$found" = 1 ]; then exit 1; fi
echo "words and links: ${#pages[@]} pages, ${#helps[@]} help files"
