package inventory

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// CPU is one model of processor in the machine; nearly always there is one. Cores and Threads count all sockets.
type CPU struct {
	Vendor    string   `json:"vendor,omitempty"`
	Model     string   `json:"model"`
	Sockets   int      `json:"sockets"`
	Cores     int      `json:"cores"`
	Threads   int      `json:"threads"`
	Microcode string   `json:"microcode,omitempty"` // of the first; a difference between threads is a problem
	Flags     []string `json:"flags,omitempty"`
}

// cpus reads /proc/cpuinfo (x86: arch/x86/kernel/cpu/proc.c, arm64: arch/arm64/kernel/cpuinfo.c).
func (c *collector) cpus() error {
	data, err := readLimited(filepath.Join(c.root.Proc, "cpuinfo"))
	if err != nil {
		return err
	}
	cpus, differs := parseCPUInfo(string(data))
	if len(cpus) == 0 {
		return fmt.Errorf("no processor in %s", filepath.Join(c.root.Proc, "cpuinfo"))
	}
	c.inv.CPUs = cpus
	if differs {
		return fmt.Errorf("the processors run different microcode versions")
	}
	return nil
}

func parseCPUInfo(text string) (cpus []CPU, microcodeDiffers bool) {
	type place struct{ model, socket, core string }
	sockets, cores := map[place]bool{}, map[place]bool{}
	for _, block := range strings.Split(text, "\n\n") {
		field := map[string]string{}
		for line := range strings.Lines(block) {
			if key, value, ok := strings.Cut(line, ":"); ok {
				field[strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
		}
		if _, err := strconv.Atoi(field["processor"]); err != nil {
			continue
		}
		model := clean(field["model name"])
		if model == "" {
			model = clean("ARM implementer " + field["CPU implementer"] + " part " + field["CPU part"])
		}
		i := slices.IndexFunc(cpus, func(c CPU) bool { return c.Model == model })
		if i < 0 {
			i = len(cpus)
			flags := strings.Fields(field["flags"] + field["Features"])
			slices.Sort(flags)
			cpus = append(cpus, CPU{Vendor: clean(field["vendor_id"]), Model: model, Microcode: clean(field["microcode"]), Flags: flags})
		}
		cpu := &cpus[i]
		cpu.Threads++
		socket := place{model: model, socket: field["physical id"]}
		core := place{model, field["physical id"], field["core id"]}
		if field["core id"] == "" {
			core.core = field["processor"]
		}
		if !sockets[socket] {
			sockets[socket] = true
			cpu.Sockets++
		}
		if !cores[core] {
			cores[core] = true
			cpu.Cores++
		}
		microcodeDiffers = microcodeDiffers || cpu.Microcode != clean(field["microcode"])
	}
	return cpus, microcodeDiffers
}
