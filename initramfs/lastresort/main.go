// Command lastresort is /bin/defaultsh of the agent image: u-root's init runs it when the agent has ended, before it
// would come to /bin/sh. It restarts the machine and never returns, so that no shell is left open on a console.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// pause leaves time to read the console and slows a restart loop down.
const pause = 10 * time.Second

func main() {
	signal.Ignore()
	console := openConsole()
	fmt.Fprintf(console, "\nbloomery-agent has ended; this machine restarts in %.0f s\n", pause.Seconds())
	time.Sleep(pause)
	unix.Sync()
	for {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			fmt.Fprintf(console, "restart failed: %v\n", err)
		}
		time.Sleep(pause)
	}
}

// openConsole opens the console anew: the end of the agent, which led the console's session, has hung up what was
// inherited (drivers/tty/tty_jobctrl.c, disassociate_ctty).
func openConsole() io.Writer {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return os.Stdout
	}
	return console
}
