package layout

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// makeOption is an argument of mkfs that a layout may give, with the values that it takes.
type makeOption struct{ flag, value string }

// makeOptions are those that change how a filesystem performs and nothing else: names, sizes and identifiers are the plan's.
func makeOptions(format string) []makeOption {
	switch format {
	case FormatExt4:
		return []makeOption{
			{"-b", `1024|2048|4096`},                                     // block size
			{"-I", `256|512|1024`},                                       // inode size
			{"-i", `[1-9][0-9]{3,7}`},                                    // bytes per inode
			{"-m", `[0-9]|[1-4][0-9]`},                                   // percent that only root may fill
			{"-T", `news|small|largefile|largefile4|huge|default`},       // usage type
			{"-E", `(stride|stripe_width|stripe-width)=[1-9][0-9]{0,5}`}, // geometry
		}
	case FormatXFS:
		return []makeOption{
			{"-b", `size=(1024|2048|4096)`},
			{"-i", `size=(256|512|1024|2048)|maxpct=[1-9][0-9]?`},
			{"-d", `agcount=[1-9][0-9]{0,3}|su=[1-9][0-9]{0,5}k|sw=[1-9][0-9]{0,2}`},
			{"-s", `size=(512|4096)`},
			{"-m", `(reflink|bigtime|rmapbt|finobt)=[01]`},
		}
	case FormatBtrfs:
		return []makeOption{
			{"-d", `single|dup`},
			{"-m", `single|dup`},
			{"-n", `4096|8192|16384|32768|65536`},
		}
	case FormatVFAT:
		return []makeOption{
			{"-F", `32`},
			{"-s", `1|2|4|8|16|32|64|128`},
		}
	}
	return nil
}

// checkMakeOptions wants pairs of a flag and its value.
func checkMakeOptions(p *Problems, filesystem, format string, args []string) {
	for k := 0; k < len(args); k += 2 {
		here := at(filesystem, "make_options", k)
		allowed := makeOptions(format)
		i := slices.IndexFunc(allowed, func(o makeOption) bool { return o.flag == args[k] })
		switch {
		case i < 0:
			p.add(here, ReasonUnsupported, "%q is not allowed for %s; allowed are %s", clip(args[k]), clip(format), makeOptionsText(allowed))
		case k+1 == len(args):
			p.add(here, ReasonMissing, "%s has no value; it follows as the next entry", args[k])
		case !regexp.MustCompile(`^(?:` + allowed[i].value + `)$`).MatchString(args[k+1]):
			p.add(at(filesystem, "make_options", k+1), ReasonInvalid, "%q is no value of %s %s; allowed are %s", clip(args[k+1]), format, args[k], allowed[i].value)
		case slices.Contains(args[:k], args[k]):
			p.add(here, ReasonDuplicate, "%s is there twice", args[k])
		}
	}
}

func makeOptionsText(allowed []makeOption) string {
	if len(allowed) == 0 {
		return "none"
	}
	var flags []string
	for _, o := range allowed {
		flags = append(flags, o.flag)
	}
	return strings.Join(flags, ", ") + " with one value each"
}

// blockSize is the block or sector size that make options ask for, 0 when they do not: a filesystem's cannot be below the disk's sectors.
func blockSize(format string, args []string) int64 {
	least := int64(0)
	for k := 0; k+1 < len(args); k += 2 {
		var n int64
		switch {
		case format == FormatExt4 && args[k] == "-b":
			fmt.Sscanf(args[k+1], "%d", &n)
		case format == FormatXFS && (args[k] == "-b" || args[k] == "-s"):
			fmt.Sscanf(args[k+1], "size=%d", &n)
		}
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}
