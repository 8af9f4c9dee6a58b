//go:build tools

package initramfs

// BuildBase compiles this program: the import keeps its module and what it needs in go.mod and go.sum.
import _ "github.com/u-root/u-root/cmds/core/init"
