// Package faults breaks a rack while it works and judges what it did. Its tests run coordinators as processes of their own in network
// namespaces, with agents and operators that call them, and BMCs and a switch that they command. Package history is the judge.
package faults
