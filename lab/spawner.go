package lab

import (
	"os/exec"
	"runtime"
	"sync"
)

// spawner starts processes from one thread that lives as long as it does: the parent-death signal
// comes when the thread that started a child ends (prctl(2), PR_SET_PDEATHSIG), and Go ends threads
// that were in a namespace.
type spawner struct {
	jobs chan func()
	wg   sync.WaitGroup
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func())}
	s.wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for job := range s.jobs {
			job()
		}
	})
	return s
}

// start is cmd.Start on the spawner's thread.
func (s *spawner) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.jobs <- func() { result <- cmd.Start() }
	return <-result
}

// close ends the thread; the children must be gone.
func (s *spawner) close() {
	close(s.jobs)
	s.wg.Wait()
}
