package coordinator

import (
	"errors"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// Here are the store's writes that operators cause, each with a record of what it changes for the call's audit.

// SaveMachine stores a machine that was read in this transaction.
func (ch *change) SaveMachine(m *bloomeryv1.Machine) error {
	if ch.call != nil {
		before, err := ch.Machine(m.GetName())
		if err != nil {
			return err
		}
		ch.changed("machine "+m.GetName(), before, m)
	}
	return ch.Tx.SaveMachine(m)
}

// CreateMachine stores a new machine.
func (ch *change) CreateMachine(m *bloomeryv1.Machine, bmcPassword string) error {
	ch.changed("machine "+m.GetName(), nil, m)
	return ch.Tx.CreateMachine(m, bmcPassword)
}

// DeleteMachine forgets a machine that was read in this transaction.
func (ch *change) DeleteMachine(m *bloomeryv1.Machine) error {
	ch.changed("machine "+m.GetName(), m, nil)
	return ch.Tx.DeleteMachine(m.GetName())
}

// SetBMCPassword replaces a machine's BMC password, which stays out of the record.
func (ch *change) SetBMCPassword(machine, password string) error {
	ch.changed("BMC password of machine "+machine, nil, &bloomeryv1.BMC{Password: password})
	return ch.Tx.SetBMCPassword(machine, password)
}

// SaveView stores a view in place of before, which is nil for a new one.
func (ch *change) SaveView(before, v *bloomeryv1.View) error {
	ch.changed("view "+v.GetName(), before, v)
	return ch.Tx.SaveView(v)
}

// DeleteView removes a view that was read in this transaction.
func (ch *change) DeleteView(v *bloomeryv1.View) error {
	ch.changed("view "+v.GetName(), v, nil)
	return ch.Tx.DeleteView(v.GetName())
}

// SaveJobs stores jobs that were read in this transaction.
func (ch *change) SaveJobs(jobs []*store.Job) error {
	if ch.call != nil {
		for _, j := range jobs {
			before, err := ch.Job(j.GetId())
			if err != nil {
				return err
			}
			ch.changed("job "+j.GetId(), before.Job, j.Job)
		}
	}
	return ch.Tx.SaveJobs(jobs)
}

// CreateJob stores a new job.
func (ch *change) CreateJob(j *store.Job) error {
	ch.changed("job "+j.GetId(), nil, j.Job)
	return ch.Tx.CreateJob(j)
}

// SaveOperator stores an operator.
func (ch *change) SaveOperator(o *bloomeryv1.Operator) error {
	ch.topics["access"] = true
	if ch.call != nil {
		before, err := ch.Operator(o.GetName())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		ch.changed("operator "+o.GetName(), before, o)
	}
	return ch.Tx.SaveOperator(o)
}

// CreateWebhook stores a webhook; its secret stays out of the record.
func (ch *change) CreateWebhook(w *bloomeryv1.Webhook, secret []byte) error {
	ch.changed("webhook "+w.GetName(), nil, w)
	return ch.Tx.CreateWebhook(w, secret)
}

// DeleteWebhook removes a webhook and what it has not delivered.
func (ch *change) DeleteWebhook(name string) error {
	if ch.call != nil {
		before, err := ch.Webhook(name)
		if err != nil {
			return err
		}
		ch.changed("webhook "+name, before, nil)
	}
	return ch.Tx.DeleteWebhook(name)
}

// SaveCatalogueImage stores what the rack knows of an image.
func (ch *change) SaveCatalogueImage(image *bloomeryv1.Image, origin string) error {
	ch.changed("image "+image.GetName(), nil, image)
	return ch.Tx.SaveCatalogueImage(image, origin)
}

// RemoveCatalogueImage makes every coordinator remove its copy of an image.
func (ch *change) RemoveCatalogueImage(name string) error {
	if ch.call != nil {
		before, err := ch.CatalogueImage(name)
		if err != nil {
			return err
		}
		ch.changed("image "+name, before.Image, nil)
	}
	return ch.Tx.RemoveCatalogueImage(name)
}

// AddImageKey makes the rack trust what a key has signed.
func (ch *change) AddImageKey(k *bloomeryv1.ImageKey) error {
	ch.topics["images"], ch.topics["image keys"] = true, true
	ch.changed("image key "+k.GetId(), nil, k)
	return ch.Tx.AddImageKey(k)
}

// RevokeImageKey stores the revocation of a key; before is the key without it.
func (ch *change) RevokeImageKey(before, k *bloomeryv1.ImageKey) error {
	ch.topics["images"], ch.topics["image keys"] = true, true
	ch.changed("image key "+k.GetId(), before, k)
	return ch.Tx.RevokeImageKey(k)
}
