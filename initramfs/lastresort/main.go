// Command lastresort is /bin/defaultsh of the agent image: u-root's init runs it when the agent has ended, before it
// would come to /bin/sh. It restarts the machine and never returns, so that no shell is left open on a console.
package main

import (
	"fmt"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// pause leaves time to read the console and slows a restart loop down.
const pause = 10 * time.Second

func main() {
	signal.Ignore()
	fmt.Printf("\nbloomery-agent has ended; this machine restarts in %.0f s\n", pause.Seconds())
	time.Sleep(pause)
	unix.Sync()
	for {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			fmt.Printf("restart failed: %v\n", err)
		}
		time.Sleep(pause)
	}
}
