"""A rule whose output is a directory of files that are not known beforehand (a tree artifact)."""

_GROW = """
forest=$1
shift
for tree in ash elm oak; do
    mkdir -p "$forest/$tree/leaves"
    for number in 1 2 3 4 5; do
        echo "$tree $number" > "$forest/$tree/leaves/leaf-$number"
    done
    cat "$@" > "$forest/$tree/trunk"
done
printf '#!/bin/sh\\necho climbed\\n' > "$forest/climb"
chmod +x "$forest/climb"
: > "$forest/empty"
"""

def _forest(ctx):
    forest = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [forest],
        inputs = ctx.files.srcs,
        arguments = [forest.path] + [file.path for file in ctx.files.srcs],
        command = _GROW,
    )
    return [DefaultInfo(files = depset([forest]), runfiles = ctx.runfiles([forest]))]

forest = rule(
    implementation = _forest,
    attrs = {"srcs": attr.label_list(allow_files = True)},
)
