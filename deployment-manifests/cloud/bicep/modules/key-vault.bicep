// Secrets of the cloud-aggregator and nothing else, so that the right to read them can be given for the whole vault. The connection
// string goes from Event Hubs into it without being a parameter or an output of a deployment.

@description('Where it is.')
param location string

@description('Name of the vault.')
@minLength(3)
@maxLength(24)
param vaultName string

@description('Namespace of Event Hubs, and the rule whose connection string is kept here.')
param eventHubsNamespaceName string

@description('See above.')
param readRuleName string

@description('Principal that may read the secrets.')
param userPrincipalId string

@description('Workspace that keeps who has read what.')
param workspaceId string

// Built-in role Key Vault Secrets User.
var secretsUser = '4633458b-17de-408a-b874-0445c86b69e6'

resource namespace 'Microsoft.EventHub/namespaces@2024-01-01' existing = {
  name: eventHubsNamespaceName
}

resource reads 'Microsoft.EventHub/namespaces/authorizationRules@2024-01-01' existing = {
  parent: namespace
  name: readRuleName
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: vaultName
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    softDeleteRetentionInDays: 90
    enablePurgeProtection: true
  }
}

resource connection 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'event-hubs-connection'
  properties: {
    contentType: 'connection string'
    value: reads.listKeys().primaryConnectionString
  }
}

resource mayReadSecrets 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(vault.id, userPrincipalId, secretsUser)
  scope: vault
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', secretsUser)
    principalId: userPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'audit'
  scope: vault
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
  }
}

@description('The vault.')
output vaultName string = vault.name

@description('Address of its secrets; a name follows.')
output secretsUri string = '${vault.properties.vaultUri}secrets/'
